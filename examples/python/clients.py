"""Which slot the next request of a proxy's connection belongs to, as the master places clients.

It says the same as the master's packages forwarded (which client a proxy speaks for) and
hash (in which slot a client belongs), except that it cannot read the header Forwarded.
"""
import ipaddress
import re
import struct

MASK = 0xFFFFFFFF  # all arithmetic is on unsigned numbers of 32 bits


def mix(x):
    """The finalizer of MurmurHash3."""
    x = (x ^ x >> 16) * 0x85EBCA6B & MASK
    x = (x ^ x >> 13) * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def fold(key, data):
    """Folds words of data into a key. Its length is a multiple of four."""
    for (word,) in struct.iter_unpack("!I", data):
        key = mix(key ^ word)
    return key


SLOTS = [mix((slot + 1) * 0x9E3779B9 & MASK) for slot in range(1024)]


def slot_of(key, slots):
    """The slot, of so many, with the highest score for a key."""
    return max(range(slots), key=lambda slot: mix(key ^ SLOTS[slot]))


def address(text):
    """An address, or None if it is none. An IPv4 address in IPv6 is the IPv4 address."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def node(entry):
    """The address in an entry that a proxy wrote, or None: 192.0.2.1:80, "[2001:db8::1]", unknown."""
    text = entry.decode("latin-1").strip(" \t")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" \t")
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or port and port[0] != ":":
            return None
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.partition("%")[0]
    return address(text) if re.fullmatch("[0-9a-fA-F:.]{1,45}", text) else None


TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD = TOKEN + rb":[^\0\r\n]*\r?\n"
HEAD = re.compile(rb"%s [^\0-\x20\x7f]+ HTTP/1\.[0-9]\r?\n((?:%s)*)\r?\n" % (TOKEN, FIELD))


class Clients:
    """How the master recognises clients, from what the environment says."""

    def __init__(self, env):
        self.header = env["HANDFAST_PROXY_HEADER"].lower().encode()
        self.trusted = [ipaddress.ip_network(r) for r in env["HANDFAST_TRUSTED_PROXIES"].split(",")]
        self.hops = int(env["HANDFAST_TRUSTED_HOPS"])
        kind, _, name = env["HANDFAST_KEY"].partition(":")
        self.named = name.lower().encode()  # the header with the key; empty: the address is it
        # Of lists, of other kinds of keys, and of sessions that name their worker we know nothing.
        self.known = self.header != b"forwarded" and kind in ("address", "header") and "," not in name and not env.get("HANDFAST_SESSION")
        self.prefixes = {4: int(env["HANDFAST_IPV4_PREFIX"]), 6: int(env["HANDFAST_IPV6_PREFIX"])}
        self.seed = int(env["HANDFAST_SEED"])

    def trusts(self, ip):
        return any(ip in trusted for trusted in self.trusted)

    def belongs(self, source, data, slots):
        """The slot of the request that data begins with, from a trusted proxy's address.

        None: the rest of the head is still to come; -1: it is no HTTP/1."""
        data = data.lstrip(b"\r\n")
        head = HEAD.match(data)
        if not head:
            return -1 if re.search(rb"\n\r?\n", data) else None
        fields = [line.partition(b":") for line in head[1].splitlines()]
        lines = [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
        keys = [value for name, value in lines if name == self.named]
        if keys and keys[-1]:  # the last line was the nearest proxy's
            return slot_of(self.text_key(keys[-1]), slots)
        said = b",".join(value for name, value in lines if name == self.header)
        return slot_of(self.address_key(self.client(said) or source), slots)

    def client(self, said):
        """The address that a list names, to which each proxy has added its peer's at the right, or None."""
        entries = [node(entry) for entry in said.split(b",") if entry.strip(b" \t")]
        if self.hops:
            return entries[-self.hops:][0] if entries else None
        known = [ip for ip in entries if ip]
        strangers = [ip for ip in known if not self.trusts(ip)]
        return strangers[-1] if strangers else known[0] if known else None

    def address_key(self, ip):
        ignored = ip.max_prefixlen - self.prefixes[ip.version]
        network = int(ip) >> ignored << ignored
        return fold(mix(self.seed ^ ip.version), network.to_bytes(ip.max_prefixlen // 8, "big"))

    def text_key(self, text):
        words = text + bytes(-len(text) % 4)
        return mix(fold(mix(self.seed ^ 1), words) ^ len(text))
