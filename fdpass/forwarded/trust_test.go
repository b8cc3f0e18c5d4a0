package forwarded

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// trust reads a list that the test knows to be right.
func trust(t testing.TB, list string) Trust {
	t.Helper()
	trusted, err := ParseTrust(list)
	if err != nil {
		t.Fatal(err)
	}
	return trusted
}

// addr is the zero Addr for the empty text.
func addr(text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(text)
}

func TestParseTrust(t *testing.T) {
	for _, v := range []struct{ name, list, want string }{
		{"nothing", "", ""},
		{"empty entries", " , ,\t,", ""},
		{"loopback", "loopback", "127.0.0.0/8,::1/128"},
		{"RFC 1918, RFC 4193", "private", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"},
		{"RFC 3927, RFC 4291", "link-local", "169.254.0.0/16,fe80::/10"},
		{"default", DefaultTrust, "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,169.254.0.0/16,fe80::/10"},
		{"ranges", "192.0.2.0/24,2001:db8::/32", "192.0.2.0/24,2001:db8::/32"},
		{"spaces", " 192.0.2.0/24 ,\t::1\n", "192.0.2.0/24,::1/128"},
		{"addresses", "192.0.2.7,2001:db8::7", "192.0.2.7/32,2001:db8::7/128"},
		{"host bits", "192.0.2.7/24,2001:db8::7/32", "192.0.2.0/24,2001:db8::/32"},
		{"IPv4-mapped address", "::ffff:192.0.2.7", "192.0.2.7/32"},
		{"IPv4-mapped range", "::ffff:192.0.2.7/120", "192.0.2.0/24"},
		{"all IPv4-mapped", "::ffff:0:0/96", "0.0.0.0/0"},
		{"zone", "fe80::1%eth0", "fe80::1/128"},
		{"everybody", "0.0.0.0/0,::/0", "0.0.0.0/0,::/0"},
	} {
		trusted, err := ParseTrust(v.list)
		if err != nil || trusted.String() != v.want {
			t.Errorf("%s: %q is %q, error %v, want %q", v.name, v.list, trusted, err, v.want)
		}
		if again, err := ParseTrust(trusted.String()); err != nil || !slices.Equal(again, trusted) {
			t.Errorf("%s: %q is read again as %q, error %v", v.name, trusted, again, err)
		}
	}
}

// TestParseTrustErrors: an error names the entry and what would be right.
func TestParseTrustErrors(t *testing.T) {
	for _, entry := range []string{
		"localhost", "Private", "all", "*", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/08", "/8", "10.0.0", "10.0.0.256",
		"010.0.0.1", "10.0.0.0-10.0.0.9", "::/129", "fe80::%eth0/10", "[::1]", "10.0.0.1:80", "10.0.0.1 10.0.0.2",
	} {
		trusted, err := ParseTrust("loopback, " + entry)
		if err == nil || trusted != nil {
			t.Errorf("%q is accepted as %q", entry, trusted)
			continue
		}
		for _, want := range []string{"forwarded: ", `"` + entry + `"`, "loopback", "private", "link-local", "CIDR"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error for %q does not say %q: %v", entry, want, err)
			}
		}
	}
}

func TestContains(t *testing.T) {
	for _, v := range []struct {
		list, addr string
		want       bool
	}{
		{"", "127.0.0.1", false},
		{"loopback", "127.255.255.254", true},
		{"loopback", "::1", true},
		{"loopback", "::ffff:127.0.0.1", true},
		{"loopback", "::2", false},
		{"loopback", "128.0.0.1", false},
		{"private", "172.31.255.255", true},
		{"private", "172.32.0.0", false},
		{"private", "192.169.0.0", false},
		{"private", "fdff::1", true},
		{"private", "fe00::1", false},
		{"link-local", "169.254.169.254", true},
		{"link-local", "fe80::1%eth0", true},
		{"link-local", "fec0::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
		{"::ffff:192.0.2.0/120", "192.0.2.9", true},
		{"192.0.2.0/24", "::ffff:192.0.2.9", true},
		{"192.0.2.0/24", "::192.0.2.9", false},
		{"0.0.0.0/0", "::1", false},
		{"::/0", "192.0.2.1", false},
		{"0.0.0.0/0,::/0", "", false}, // the zero Addr
		{"203.0.113.1,192.0.2.1", "192.0.2.1", true},
	} {
		if got := trust(t, v.list).Contains(addr(v.addr)); got != v.want {
			t.Errorf("%q contains %q: %v, want %v", v.list, v.addr, got, v.want)
		}
	}
}

// TestWordsStay: code that appends to the ranges of a word must not change the word.
func TestWordsStay(t *testing.T) {
	_ = append(trust(t, "private"), netip.MustParsePrefix("0.0.0.0/0"))
	_ = trust(t, "private,0.0.0.0/0")
	if got := trust(t, "private,::1"); got.Contains(addr("192.0.2.1")) {
		t.Errorf("private has become %q", got)
	}
}
