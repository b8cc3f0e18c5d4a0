package forwarded

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// hopsOf returns what lines of a header say when so many proxies are counted.
func hopsOf(header string, count int, lines ...string) netip.Addr {
	r := Rules{Header: header, Hops: count}
	var c chain
	for _, line := range lines {
		r.add(&c, line)
	}
	return c.client()
}

// TestHops: the client is the address that the farthest of the proxies wrote. The first two are as Express (proxy-addr,
// by number) and Envoy (xff_num_trusted_hops with use_remote_address) have them.
func TestHops(t *testing.T) {
	for _, v := range []struct {
		name  string
		hops  int
		lines []string
		want  string
	}{
		{"one", 1, []string{"203.0.113.66, 192.0.2.1"}, "192.0.2.1"},
		{"two", 2, []string{"203.0.113.66, 192.0.2.1, 198.51.100.9"}, "192.0.2.1"},
		{"a client that is trusted", 1, []string{"192.0.2.1, 10.0.0.1"}, "10.0.0.1"},
		{"most", MaxHops, []string{"203.0.113.66, 192.0.2.1" + strings.Repeat(", 198.51.100.9", MaxHops-1)}, "192.0.2.1"},
		{"fewer: the leftmost", 3, []string{"192.0.2.1, 198.51.100.9"}, "192.0.2.1"},
		{"fewer in lines", 3, []string{"192.0.2.1", "198.51.100.9"}, "192.0.2.1"},
		{"no line", 2, nil, ""},
		{"nothing", 2, []string{"", " ", ",, ,"}, ""},
		{"lines are one list", 2, []string{"203.0.113.66", "192.0.2.1", "198.51.100.9"}, "192.0.2.1"},
		{"a line across", 3, []string{"203.0.113.66, 192.0.2.1", "198.51.100.9, 10.0.0.1"}, "192.0.2.1"},
		{"an earlier line does not count", 2, []string{"203.0.113.66, 203.0.113.66", "192.0.2.1, 198.51.100.9"}, "192.0.2.1"},
		{"empty entries are none", 2, []string{"203.0.113.66, 192.0.2.1,, 198.51.100.9, "}, "192.0.2.1"},
		{"empty lines are none", 2, []string{"203.0.113.66, 192.0.2.1", "", "198.51.100.9", ","}, "192.0.2.1"},
		{"what names none counts", 2, []string{"192.0.2.1, unknown"}, "192.0.2.1"},
		{"the farthest names none", 2, []string{"203.0.113.66, unknown, 198.51.100.9"}, ""},
		{"nonsense counts", 2, []string{"192.0.2.1, <script>"}, "192.0.2.1"},
		{"ports", 2, []string{"[2001:db8::1]:443, 198.51.100.9:80"}, "2001:db8::1"},
	} {
		if got := hopsOf(DefaultHeader, v.hops, v.lines...); got != addr(v.want) {
			t.Errorf("%s: %q is %v, want %q", v.name, v.lines, got, v.want)
		}
	}
}

// TestForwardedHops: an element of RFC 7239 is one proxy's, however many parameters it has.
func TestForwardedHops(t *testing.T) {
	for _, v := range []struct {
		name  string
		hops  int
		lines []string
		want  string
	}{
		{"one", 1, []string{`for=203.0.113.66, for=192.0.2.1`}, "192.0.2.1"},
		{"parameters", 2, []string{`for=203.0.113.66, proto=https;for=192.0.2.1;by=10.0.0.1, by=10.0.0.2;for=198.51.100.9;host=a`}, "192.0.2.1"},
		{"an element without for", 2, []string{`for=192.0.2.1, proto=https;by=10.0.0.1`}, "192.0.2.1"},
		{"the farthest names none", 2, []string{`for=203.0.113.66, by=10.0.0.1, for=198.51.100.9`}, ""},
		{"hidden", 1, []string{`for=203.0.113.66, for=_hidden`}, ""},
		{"commas in quotes", 2, []string{`for=192.0.2.1, for=198.51.100.9;host="a, for=203.0.113.66, b"`}, "192.0.2.1"},
		{"empty elements", 2, []string{`for=192.0.2.1, ,for=198.51.100.9,`}, "192.0.2.1"},
		{"lines", 2, []string{`for=203.0.113.66`, `for=192.0.2.1`, `for="[2001:db8::9]"`}, "192.0.2.1"},
		{"fewer: the leftmost", 3, []string{`for="[2001:db8::1]:80", for=198.51.100.9`}, "2001:db8::1"},
	} {
		if got := hopsOf("Forwarded", v.hops, v.lines...); got != addr(v.want) {
			t.Errorf("%s: %q is %v, want %q", v.name, v.lines, got, v.want)
		}
	}
}

// FuzzHops: nothing that a client sends changes what as many proxies append to it, however it is cut into lines.
func FuzzHops(f *testing.F) {
	for i, line := range hostileLines {
		f.Add(line, uint8(i), uint8(i/3))
	}
	f.Fuzz(func(t *testing.T, line string, hops, ahead uint8) {
		count := int(hops)%MaxHops + 1
		for _, g := range []struct{ header, client, proxy string }{
			{DefaultHeader, "192.0.2.1", "198.51.100.9"},
			{"Forwarded", `proto=https;for=192.0.2.1;host=",a"`, `for="[2001:db8::9]:80";host="a;for=203.0.113.66, b="`},
		} {
			appended := append([]string{g.client}, slices.Repeat([]string{g.proxy}, count-1)...)
			cut := int(ahead) % count
			one, two := strings.Join(appended[:cut], ", "), strings.Join(appended[cut:], ", ")
			whole := line + ", " + strings.Join(appended, ",")
			if got := hopsOf(g.header, count, whole); got != addr("192.0.2.1") {
				t.Errorf("%d hops, %q: %v", count, whole, got)
			}
			if got := hopsOf(g.header, count, line, one, two); got != addr("192.0.2.1") {
				t.Errorf("%d hops, %q, %q, %q: %v", count, line, one, two, got)
			}
		}
	})
}

func TestHopsAllocateNothing(t *testing.T) {
	for _, v := range []struct{ header, line string }{
		{DefaultHeader, "203.0.113.66, 192.0.2.1:5678, unknown, [2001:db8::1]:443"},
		{"Forwarded", `for=192.0.2.1;proto=http;by=203.0.113.43, for=10.0.0.1;host="a, b"`},
	} {
		r := Rules{Header: v.header, Hops: MaxHops}
		if n := testing.AllocsPerRun(100, func() {
			var c chain
			r.add(&c, v.line)
			r.add(&c, v.line)
			c.client()
		}); n != 0 {
			t.Errorf("%s: %v allocations", v.line, n)
		}
	}
}

// TestHopsOfEnvironment: a master that says nothing counts none, and half a number is an error.
func TestHopsOfEnvironment(t *testing.T) {
	rules := Rules{Header: DefaultHeader, Trusted: trust(t, "private"), Hops: 3}
	environ := rules.Environ()
	for value, want := range map[string]int{"3": 3, "": 0, "9": -1, "-1": -1, "3x": -1} {
		i := slices.Index(environ, "HANDFAST_TRUSTED_HOPS="+strconv.Itoa(rules.Hops))
		changed := slices.Clone(environ)
		changed[i] = "HANDFAST_TRUSTED_HOPS=" + value
		got, err := FromEnviron(getenv(changed))
		if (err != nil) != (want < 0) || err == nil && got.Hops != want {
			t.Errorf("%q: %d, %v, want %d", value, got.Hops, err, want)
		}
	}
}
