package forwarded

import (
	"strings"
	"testing"
)

func TestParseNode(t *testing.T) {
	long := strings.Repeat("1", 1<<16)
	for _, v := range []struct{ name, node, want string }{
		{"IPv4", "192.0.2.1", "192.0.2.1"},
		{"space", " \t192.0.2.1\t ", "192.0.2.1"},
		{"port", "192.0.2.1:5678", "192.0.2.1"},
		{"port, Azure", "192.0.2.1:", "192.0.2.1"},
		{"hidden port, RFC 7239 section 6", `"192.0.2.1:_port"`, "192.0.2.1"},
		{"quotes", `"192.0.2.1"`, "192.0.2.1"},
		{"quotes, port", `"192.0.2.1:5678"`, "192.0.2.1"},
		{"space in quotes", ` " 192.0.2.1 " `, "192.0.2.1"},
		{"brackets, IPv4", "[192.0.2.1]:5678", "192.0.2.1"},
		{"IPv6", "2001:db8::1", "2001:db8::1"},
		{"capitals", "2001:DB8::A", "2001:db8::a"},
		{"IPv6 without brackets has no port", "2001:db8::1:5678", "2001:db8::1:5678"},
		{"shortest", "::", "::"},
		{"loopback", "::1", "::1"},
		{"brackets", "[2001:db8::1]", "2001:db8::1"},
		{"brackets, port", "[2001:db8::1]:5678", "2001:db8::1"},
		{"brackets, no port", "[2001:db8::1]:", "2001:db8::1"},
		{"RFC 7239 section 6", `"[2001:db8:cafe::17]:47011"`, "2001:db8:cafe::17"},
		{"zone", "fe80::1%eth0", "fe80::1"},
		{"zone in brackets", "[fe80::1%eth0]:5678", "fe80::1"},
		{"zone, RFC 6874", "[fe80::1%25eth0]", "fe80::1"},
		{"IPv4-mapped", "::ffff:192.0.2.1", "192.0.2.1"},
		{"IPv4-mapped in hex", "::FFFF:c000:201", "192.0.2.1"},
		{"IPv4-mapped, port", "[::ffff:192.0.2.1]:5678", "192.0.2.1"},
		{"longest", "1111:2222:3333:4444:5555:6666:123.123.123.123", "1111:2222:3333:4444:5555:6666:7b7b:7b7b"},

		{"empty", "", ""},
		{"only space", " \t", ""},
		{"unknown", "unknown", ""},
		{"hidden", "_hidden", ""},
		{"hidden, RFC 7239 section 4", `"_gazonk"`, ""},
		{"Unix socket, nginx", "unix:", ""},
		{"Unix socket", "unix:/run/app.sock", ""},
		{"a name", "localhost", ""},
		{"hex letters", "dead", ""},
		{"none", "-", ""},
		{"too short", "192.0.2", ""},
		{"too long", "192.0.2.1.1", ""},
		{"octal, CVE-2021-29923", "010.0.0.1", ""},
		{"inet_aton", "127.1", ""},
		{"a number", "3232235521", ""},
		{"two addresses", "192.0.2.1 203.0.113.9", ""},
		{"range", "192.0.2.0/24", ""},
		{"one quote", `"192.0.2.1`, ""},
		{"only a quote", `"`, ""},
		{"empty quotes", `""`, ""},
		{"single quotes", `'192.0.2.1'`, ""},
		{"text behind quotes", `"192.0.2.1"x`, ""},
		{"open bracket", "[2001:db8::1", ""},
		{"closing bracket", "2001:db8::1]", ""},
		{"text behind brackets", "[2001:db8::1]5678", ""},
		{"empty brackets", "[]:5678", ""},
		{"only a colon", ":", ""},
		{"only a port", ":5678", ""},
		{"only a zone", "%eth0", ""},
		{"port behind IPv4-mapped", "::ffff:192.0.2.1:5678", ""},
		{"NUL", "192.0.2.1\x00", ""},
		{"no-break space", "\u00a0192.0.2.1", ""},
		{"other digits", "１９２.0.2.1", ""},

		{"very long number", long, ""},
		{"very long port", "192.0.2.1:" + long, "192.0.2.1"},
		{"very long zone", "fe80::1%" + long, "fe80::1"},
		{"very many colons", strings.Repeat(":", 1<<16), ""},
		{"very many brackets", strings.Repeat("[", 1<<16), ""},
	} {
		if got := parseNode(v.node); got != addr(v.want) {
			t.Errorf("%s: %.60q is %v, want %q", v.name, v.node, got, v.want)
		}
	}
}
