package forwarded

import (
	"net/netip"
	"strings"
)

// MaxHops is the largest Rules.Hops.
const MaxHops = 8

// hops are the nearest entries of the list that header lines are, added in their order: those that
// as many proxies wrote. Entries to their left do not count, whoever wrote them.
type hops struct {
	addrs [MaxHops]netip.Addr // from the right; the zero Addr where an entry names none
	n     int
}

// add adds a line, of which the most that count are the rightmost ones. It takes it apart from the right, as chain does.
func (h *hops) add(line string, most int, cut func(string) (rest, node string)) {
	var nearest hops
	for line != "" && nearest.n < most {
		rest, node := cut(line)
		if entry := strings.TrimPrefix(line[len(rest):], ","); trim(entry) != "" { // empty ones are none (RFC 9110, section 5.6.1.2)
			nearest.addrs[nearest.n] = parseNode(node)
			nearest.n++
		}
		line = rest
	}
	nearest.n += copy(nearest.addrs[nearest.n:most], h.addrs[:h.n])
	*h = nearest
}

// client returns the address that the farthest of the proxies wrote. If there are fewer entries than
// proxies that is the leftmost. It is the zero Addr when that names none, or when there is no entry.
func (h *hops) client() netip.Addr {
	if h.n == 0 {
		return netip.Addr{}
	}
	return h.addrs[h.n-1]
}

// cutElement cuts off the last element of a Forwarded, which one proxy wrote. The node is that of its last "for",
// empty if it has none.
func cutElement(line string) (rest, node string) {
	for {
		rest, value := cutFor(line)
		if node == "" {
			node = value
		}
		if rest == "" || line[len(rest)] == ',' {
			return rest, node
		}
		line = rest
	}
}
