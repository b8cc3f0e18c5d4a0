package forwarded

import (
	"net/netip"
	"strings"
)

// maxAddress is the length of the longest address in text, an IPv4-mapped one in
// full (INET6_ADDRSTRLEN, man 3 inet_ntop).
const maxAddress = 45

// parseNode reads one entry of a list. These are in use, the last three without an
// address:
//
//	192.0.2.1  192.0.2.1:5678  2001:db8::1  [2001:db8::1]:5678  "[2001:db8::1]"
//	fe80::1%eth0  ::ffff:192.0.2.1  unknown  _hidden  unix:
//
// Text that is no address yields the zero Addr. Nothing is kept of node.
func parseNode(node string) netip.Addr {
	node = trim(node)
	if len(node) >= 2 && node[0] == '"' && node[len(node)-1] == '"' {
		node = trim(node[1 : len(node)-1])
	}
	addr, _, _ := strings.Cut(host(node), "%") // a zone means nothing to us
	if addr == "" || len(addr) > maxAddress || strings.Trim(addr, "0123456789abcdefABCDEF:.") != "" {
		return netip.Addr{} // the error would be allocated
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap()
}

// host takes the port off.
func host(node string) string {
	if inside, found := strings.CutPrefix(node, "["); found {
		addr, port, closed := strings.Cut(inside, "]")
		if !closed || port != "" && port[0] != ':' {
			return ""
		}
		return addr
	}
	if addr, port, found := strings.Cut(node, ":"); found && !strings.Contains(port, ":") {
		return addr
	}
	return node
}
