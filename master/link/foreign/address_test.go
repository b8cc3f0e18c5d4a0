package foreign

import (
	"net/netip"
	"testing"
)

// TestFit: what a listener stands in for, and how well.
func TestFit(t *testing.T) {
	const only6 = true
	for _, tt := range []struct {
		listener string
		onlyIPv6 bool
		bound    string
		want     int
	}{
		{"127.0.0.1:80", false, "127.0.0.1:80", 3},
		{"127.0.0.1:80", false, "127.0.0.1:81", 0},
		{"127.0.0.1:80", false, "127.0.0.2:80", 0},
		{"127.0.0.1:80", false, "0.0.0.0:80", 2},
		{"127.0.0.1:80", false, "[::]:80", 1},
		{"127.0.0.1:80", false, "[::1]:80", 0},
		{"0.0.0.0:80", false, "0.0.0.0:80", 3},
		{"0.0.0.0:80", false, "127.0.0.1:80", 2},
		{"0.0.0.0:80", false, "[::]:80", 1},
		{"0.0.0.0:80", false, "[::1]:80", 0},
		{"[::]:80", false, "[::]:80", 3},
		{"[::]:80", false, "[::1]:80", 2},
		{"[::]:80", false, "0.0.0.0:80", 1},
		{"[::]:80", false, "127.0.0.1:80", 1},
		{"[::]:80", only6, "0.0.0.0:80", 0},
		{"[::]:80", only6, "127.0.0.1:80", 0},
		{"[::]:80", only6, "[::1]:80", 2},
		{"[::1]:80", false, "[::]:80", 2},
		{"[::1]:80", false, "0.0.0.0:80", 0},
	} {
		ln := Address{netip.MustParseAddrPort(tt.listener), tt.onlyIPv6}
		if got := ln.Fit(Address{AddrPort: netip.MustParseAddrPort(tt.bound)}); got != tt.want {
			t.Errorf("%v (IPv6 only: %v) for %s: %d, want %d", ln, tt.onlyIPv6, tt.bound, got, tt.want)
		}
	}
}
