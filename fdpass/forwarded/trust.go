package forwarded

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/handfast/handfast/fdpass"
)

// Trust is a set of addresses whose word counts.
type Trust []netip.Prefix

// Words for ranges that nobody routes over the Internet.
var words = map[string]Trust{
	"loopback":   prefixes("127.0.0.0/8", "::1/128"),
	"private":    prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"), // RFC 1918, RFC 4193
	"link-local": prefixes("169.254.0.0/16", "fe80::/10"),                               // RFC 3927, RFC 4291
}

func prefixes(texts ...string) (t Trust) {
	for _, text := range texts {
		t = append(t, netip.MustParsePrefix(text))
	}
	return t
}

// DefaultTrust is for proxies on the same machine or in the same private network.
const DefaultTrust = "loopback,private,link-local"

// ParseTrust reads a list of CIDR ranges, addresses, and the words loopback, private
// and link-local, separated by commas.
func ParseTrust(list string) (Trust, error) {
	var t Trust
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		if word, ok := words[entry]; ok {
			t = append(t, word...)
			continue
		}
		prefix, err := parsePrefix(entry)
		if err != nil {
			return nil, fmt.Errorf("forwarded: %q is no address and no CIDR range; want one of those, or loopback, private or link-local", entry)
		}
		t = append(t, prefix)
	}
	return t, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		addr = addr.Unmap().WithZone("")
		return addr.Prefix(addr.BitLen())
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if addr := prefix.Addr(); addr.Is4In6() {
		// IPv4 addresses are never seen in this form, so a shorter prefix means nothing.
		return addr.Unmap().Prefix(prefix.Bits() - 96)
	}
	return prefix.Masked(), nil
}

// Contains tells whether an address is trusted. An IPv4-mapped IPv6 address is the
// IPv4 address, and zones do not matter. The zero Addr is in no set, nor is fdpass.UnixPeer.
func (t Trust) Contains(addr netip.Addr) bool {
	if addr == fdpass.UnixPeer {
		return false
	}
	addr = addr.Unmap().WithZone("")
	for _, prefix := range t {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// String returns the ranges as ParseTrust reads them.
func (t Trust) String() string {
	texts := make([]string, len(t))
	for i, prefix := range t {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}
