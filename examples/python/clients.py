"""Which slot the next request on a connection belongs to, and which workers it names, as the master sees it.

It says the same as the master's packages forwarded (which client a proxy speaks for, what clients and
sessions are recognised by) and hash (in which slot a client belongs), except that it cannot read the header Forwarded.
"""
import collections
import ipaddress
import re
import struct
import urllib.parse

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


UNIX = "unix"  # where a connection of a Unix socket is from, which the master says by a flag: a trusted proxy without an address


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
HEAD = re.compile(rb"%s ([^\0-\x20\x7f]+) HTTP/1\.[0-9]\r?\n((?:%s)*)\r?\n" % (TOKEN, FIELD))
NAMED = re.compile(rb"(?:.*\.)?([a-z2-7]{26})", re.DOTALL)  # an id of a session that names a worker


def decoded(text, plus=b"+"):
    """Text without percent-encoding; as it is if that is wrong."""
    if re.search(rb"%(?![0-9a-fA-F]{2})", text):
        return text
    return urllib.parse.unquote_to_bytes(text.replace(b"+", plus))


def split(target):
    """The path and the query of a request's target."""
    if not target.startswith(b"/"):  # it may be an absolute URI
        found = re.search(rb"://[^/?]*", target)
        target = target[found.end():] if found else b""
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return path, query


def parameter(name, target, _):
    """The first parameter of a name in the target's query."""
    for pair in split(target)[1].split(b"&"):
        key, _, value = pair.partition(b"=")
        if pair and decoded(key, b" ") == name:
            return decoded(value, b" ")
    return b""


def segment(template, target, _):
    """The segment of the target's path that a template such as /echo/*/{session} has in braces."""
    path = split(target)[0].split(b"/")
    if len(path) < len(template.split(b"/")):
        return b""
    for want, have in zip(template.split(b"/")[1:], map(decoded, path[1:])):
        if want.startswith(b"{"):
            return have
        if not have or want not in (b"*", have):
            return b""


def cookie(name, _, lines):
    """The first cookie of a name that is not empty, but only the first one in each line, without quotes."""
    for header, line in lines:
        pairs = [pair.partition(b"=") for pair in line.split(b";")] if header == b"cookie" else []
        for value in [value.strip(b" \t") for key, equals, value in pairs if equals and key.strip(b" \t") == name][:1]:
            value = value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value
            if value:
                return value
    return b""


def header(name, _, lines):
    """The last line of a header, which the nearest proxy wrote."""
    return ([b""] + [value for key, value in lines if key == name.lower()])[-1]


KINDS = {
    "header": header,
    "cookie": cookie,
    "query": parameter,
    "path": segment,
    "engine.io": lambda _, target, lines: parameter(b"sid", target, lines),
}
Source = collections.namedtuple("Source", "find name")  # of a key, or of a session's id; find is of KINDS


def sources(text):
    """Those in a list with commas. One of a kind that we do not know is None."""
    entries = [entry.partition(":") for entry in text.split(",") if entry not in ("", "address")]
    return [Source(KINDS[kind], name.encode("utf-8", "surrogateescape")) if kind in KINDS else None for kind, _, name in entries]


Request = collections.namedtuple("Request", "slot tokens")  # slot: None is any one; tokens: of workers that it names


class Clients:
    """How the master recognises clients and sessions, from what the environment says."""

    def __init__(self, env):
        behind = env.get("HANDFAST_BEHIND_PROXY") == "true"
        self.header = env["HANDFAST_PROXY_HEADER"].lower().encode() if behind else None
        self.trusted = [ipaddress.ip_network(r) for r in env["HANDFAST_TRUSTED_PROXIES"].split(",")] if behind else []
        self.hops = int(env["HANDFAST_TRUSTED_HOPS"]) if behind else 0
        self.keys = sources(env.get("HANDFAST_KEY", ""))
        self.sessions = sources(env.get("HANDFAST_SESSION", ""))
        self.anywhere = env.get("HANDFAST_NEW_SESSIONS") == "anywhere"
        self.known = self.header != b"forwarded" and None not in self.keys + self.sessions
        self.prefixes = {4: int(env["HANDFAST_IPV4_PREFIX"]), 6: int(env["HANDFAST_IPV6_PREFIX"])}
        self.seed = int(env["HANDFAST_SEED"])

    def trusts(self, ip):
        return ip == UNIX or any(ip in trusted for trusted in self.trusted)

    def matter(self, source):
        """Tells whether what requests from an address say decides where they belong."""
        return self.trusts(source) or bool(self.sessions) or any(key.find is not header for key in self.keys)

    def read(self, source, data, slots):
        """The Request that data begins with, from an address.

        None: the rest of the head is still to come; -1: it is no HTTP/1."""
        data = data.lstrip(b"\r\n")
        head = HEAD.match(data)
        if not head:
            return -1 if re.search(rb"\n\r?\n", data) else None
        fields = [line.partition(b":") for line in head[2].splitlines()]
        lines = [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
        named = [NAMED.fullmatch(id.find(id.name, head[1], lines)) for id in self.sessions]
        return Request(self.slot(source, head[1], lines, slots), [found[1] for found in named if found])

    def slot(self, source, target, lines, slots):
        believed = self.trusts(source)
        for key in self.keys:
            value = key.find(key.name, target, lines)
            if value and (believed or key.find is not header):
                return slot_of(self.text_key(value), slots)
        if self.anywhere:
            return None
        said = b",".join(value for name, value in lines if name == self.header)
        return slot_of(self.address_key(believed and self.client(said) or source), slots)

    def client(self, said):
        """The address that a list names, to which each proxy has added its peer's at the right, or None."""
        entries = [node(entry) for entry in said.split(b",") if entry.strip(b" \t")]
        if self.hops:
            return entries[-self.hops:][0] if entries else None
        known = [ip for ip in entries if ip]
        strangers = [ip for ip in known if not self.trusts(ip)]
        return strangers[-1] if strangers else known[0] if known else None

    def address_key(self, ip):
        if ip == UNIX:
            return mix(self.seed)
        ignored = ip.max_prefixlen - self.prefixes[ip.version]
        network = int(ip) >> ignored << ignored
        return fold(mix(self.seed ^ ip.version), network.to_bytes(ip.max_prefixlen // 8, "big"))

    def text_key(self, text):
        words = text + bytes(-len(text) % 4)
        return mix(fold(mix(self.seed ^ 1), words) ^ len(text))
