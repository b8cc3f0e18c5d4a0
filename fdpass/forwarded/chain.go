package forwarded

import (
	"net/netip"
	"strings"
)

// chain is what header lines say, added in their order, of the hops between the
// client and us. Several lines are one list (RFC 9110, section 5.2).
//
// Everything to the left of the rightmost address that is not a trusted proxy's was written
// by the client with that address, which may have invented it. So nobody can choose the
// address that counts, as long as every trusted proxy adds its peer's: one that adds
// "unknown" instead leaves the choice to its clients.
type chain struct {
	named netip.Addr // the rightmost that is not trusted
	first netip.Addr // the leftmost, which is a trusted proxy's
	hops  hops       // in their place, if proxies are counted
}

// client returns the address that the chain begins with as far as it can be
// believed: the rightmost that is not a trusted proxy's, or if there are only
// trusted ones the leftmost; and if proxies are counted, what the farthest of them wrote.
// It is the zero Addr when there is none.
func (c *chain) client() netip.Addr {
	if c.hops.n > 0 {
		return c.hops.client()
	}
	if c.named.IsValid() {
		return c.named
	}
	return c.first
}

// addList adds a line of addresses with commas between them: X-Forwarded-For and
// its like, of which nobody wrote the grammar down.
func (c *chain) addList(line string, trusted Trust) { c.add(line, trusted, cutNode) }

// addForwarded adds a line of the header Forwarded (RFC 7239, section 4):
//
//	for=192.0.2.60;proto=http;by=203.0.113.43, for="[2001:db8::1]:4711"
func (c *chain) addForwarded(line string, trusted Trust) { c.add(line, trusted, cutFor) }

// add takes a line apart from the right, where the nearest proxy wrote. Read from the
// left, a quote without an end that a client sent could close at one that a proxy
// wrote, and hide what is between them.
func (c *chain) add(line string, trusted Trust, cut func(string) (rest, node string)) {
	var first netip.Addr
	for line != "" {
		var node string
		line, node = cut(line)
		addr := parseNode(node)
		switch {
		case !addr.IsValid():
			// unknown, hidden, or nonsense: somebody, but nobody to recognise.
		case !trusted.Contains(addr):
			c.named = addr
			return
		default:
			first = addr
		}
	}
	if !c.first.IsValid() {
		c.first = first
	}
}

// cutNode cuts off the last entry of a list.
func cutNode(line string) (rest, node string) {
	i := strings.LastIndexByte(line, ',')
	return line[:max(i, 0)], line[i+1:]
}

// cutFor cuts off the last pair of a Forwarded. The node is empty if it is not "for".
func cutFor(line string) (rest, node string) {
	i := strings.LastIndexAny(line[:unquoted(line)], ",;")
	name, value, _ := strings.Cut(line[i+1:], "=")
	if !strings.EqualFold(trim(name), "for") {
		value = ""
	}
	return line[:max(i, 0)], value
}

// unquoted returns where the quoted string begins with which s ends, and the length
// of s if it does not end with one. Then a quote quotes nothing.
func unquoted(s string) int {
	inside, closed := strings.CutSuffix(strings.TrimRight(s, " \t"), `"`)
	if !closed || escaped(inside) {
		return len(s)
	}
	for i := len(inside) - 1; i >= 0; i-- {
		if inside[i] == '"' && !escaped(inside[:i]) {
			return i
		}
	}
	return len(s)
}

// escaped tells whether what follows s is escaped: an odd number of backslashes is
// at its end.
func escaped(s string) bool {
	return (len(s)-len(strings.TrimRight(s, `\`)))%2 == 1
}

// trim removes the white space that HTTP knows (RFC 9110, section 5.6.3).
func trim(s string) string { return strings.Trim(s, " \t") }
