package forwarded

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var hostileLines = []string{
	"", ",", `"`, `\`, "unknown", "_hidden", "unix:", "192.0.2.1", "192.0.2.1:80, 10.0.0.1", "10.0.0.1, 10.0.0.2", "[2001:db8::1]:80,[fd00::1]",
	"fe80::1%eth0", "::ffff:10.0.0.1, ::ffff:192.0.2.1", `"192.0.2.1"`, `"[2001:db8::1]:80"`,
	`for=192.0.2.60;proto=http;by=203.0.113.43`, `For="[2001:db8:cafe::17]:4711", for=10.0.0.1`, `for="_gazonk", for=unknown`,
	`for=192.0.2.1;host=",a"`, `for=203.0.113.66;x="`, `for="\`, `x="\"`, `x="a\\",for=10.0.0.1`, `x="y=",for="10.0.0.1" ;z`, `for=10.0.0.1;secret="a,for=192.0.2.1"`,
}

// FuzzChain: X-Forwarded-For and its like.
func FuzzChain(f *testing.F) {
	for _, line := range hostileLines {
		f.Add(line, "203.0.113.66", uint16(1))
		f.Add("192.0.2.1, 10.0.0.1", line, uint16(0))
	}
	trusted := trust(f, proxies)
	f.Fuzz(func(t *testing.T, line, before string, comma uint16) {
		g := grammar{DefaultHeader, trusted, cutNode}
		g.agrees(t, line, strings.Split(line, ","))
		g.appends(t, line, "192.0.2.1", "192.0.2.1")
		g.appends(t, line, "2001:db8::7", "2001:db8::7")
		g.appends(t, line, "[2001:db8::7]:4711, fd00::1", "2001:db8::7")
		g.splits(t, line, int(comma))
		g.ignores(t, before, line)
	})
}

// FuzzForwarded: RFC 7239. The meaning of a malformed line is open, but not that of what proxies
// append to it.
func FuzzForwarded(f *testing.F) {
	for _, line := range hostileLines {
		f.Add(line, `for=203.0.113.66;x="`, uint16(1))
		f.Add(`for=192.0.2.1;host=",a", for=10.0.0.1`, line, uint16(0))
	}
	trusted := trust(f, proxies)
	f.Fuzz(func(t *testing.T, line, before string, comma uint16) {
		g := grammar{"Forwarded", trusted, cutFor}
		g.appends(t, line, `for=192.0.2.1`, "192.0.2.1")
		g.appends(t, line, `for="[2001:db8::7]:4711"`, "2001:db8::7")
		g.appends(t, line, `for=192.0.2.1;host=",a";by="[fd00::2]", for="10.0.0.1"`, "192.0.2.1")
		g.appends(t, line, `for=192.0.2.1;host="a;for=203.0.113.66;b="`, "192.0.2.1")
		g.splits(t, line, int(comma))
		if nodes, ok := wellFormed(line); ok {
			g.agrees(t, line, nodes)
			g.ignores(t, before, line)
		}
	})
}

// pair is a parameter at the beginning of a Forwarded, and what ends it.
var pair = regexp.MustCompile(`(?s)^([^=,;"]*)(?:=([^",;]*|"(?:[^"\\]|\\.)*"[ \t]*))?(?:[,;]|$)`)

// wellFormed reads a Forwarded as the RFC says, from the left.
func wellFormed(line string) (nodes []string, ok bool) {
	for line != "" {
		m := pair.FindStringSubmatch(line)
		if m == nil {
			return nil, false
		}
		if strings.ToLower(strings.Trim(m[1], " \t")) == "for" {
			nodes = append(nodes, m[2])
		}
		line = line[len(m[0]):]
	}
	return nodes, true
}

// grammar is a header with the properties that nobody can choose their address by.
type grammar struct {
	header  string
	trusted Trust
	cut     func(string) (rest, node string)
}

func (g grammar) client(lines ...string) netip.Addr { return clientOf(g.header, g.trusted, lines...) }

// agrees: the client is the rightmost node that is not trusted, else the leftmost.
func (g grammar) agrees(t *testing.T, line string, nodes []string) {
	var want netip.Addr
	for _, node := range slices.Backward(nodes) {
		if addr := parseNode(node); addr.IsValid() {
			want = addr
			if !g.trusted.Contains(addr) {
				break
			}
		}
	}
	if got := g.client(line); got != want {
		t.Errorf("%q is %v, want %v of %q", line, got, want, nodes)
	}
}

// appends: what a proxy writes behind a line counts, not the line.
func (g grammar) appends(t *testing.T, line, proxy, want string) {
	if got := g.client(line + ", " + proxy); got != addr(want) {
		t.Errorf("%q, then %q: %v, want %s", line, proxy, got, want)
	}
}

// splits: two lines are one list (RFC 9110, section 5.2), wherever they are cut.
func (g grammar) splits(t *testing.T, line string, comma int) {
	var commas []int
	for rest := line; rest != ""; {
		before, _ := g.cut(rest)
		if rest[len(before)] == ',' {
			commas = append(commas, len(before))
		}
		rest = before
	}
	if len(commas) == 0 {
		return
	}
	i := commas[comma%len(commas)]
	if one, two := g.client(line), g.client(line[:i], line[i+1:]); one != two {
		t.Errorf("%q is %v, but %q and %q are %v", line, one, line[:i], line[i+1:], two)
	}
}

// ignores: what is left of a client that is not trusted does not matter.
func (g grammar) ignores(t *testing.T, before, line string) {
	want := g.client(line)
	if !want.IsValid() || g.trusted.Contains(want) {
		return
	}
	if got := g.client(before + "," + line); got != want {
		t.Errorf("%q is %v, but behind %q it is %v", line, want, before, got)
	}
	if got := g.client(before, line); got != want {
		t.Errorf("%q is %v, but below %q it is %v", line, want, before, got)
	}
}
