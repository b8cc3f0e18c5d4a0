package forwarded

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// proxies are those whom the tests trust; their clients have documentation addresses
// (RFC 5737, RFC 3849), and 203.0.113.66 is what an attacker would like to be.
const proxies = "10.0.0.0/8,fd00::/8"

// clientOf returns what lines of a header say.
func clientOf(header string, trusted Trust, lines ...string) netip.Addr {
	r := Rules{Header: header, Trusted: trusted}
	var c chain
	for _, line := range lines {
		r.add(&c, line)
	}
	return c.client()
}

func TestList(t *testing.T) {
	trusted := trust(t, proxies)
	for _, v := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"no line", nil, ""},
		{"empty line", []string{""}, ""},
		{"commas", []string{" , ,,"}, ""},
		{"one", []string{"192.0.2.1"}, "192.0.2.1"},
		{"one proxy more", []string{"192.0.2.1, 10.0.0.1"}, "192.0.2.1"},
		{"two proxies more", []string{"2001:db8::1, fd00::1, 10.0.0.2"}, "2001:db8::1"},
		{"no space", []string{"192.0.2.1,10.0.0.1"}, "192.0.2.1"},
		{"much space", []string{"\t192.0.2.1 \t,  10.0.0.1 "}, "192.0.2.1"},
		{"invented part", []string{"203.0.113.66, 192.0.2.1"}, "192.0.2.1"},
		{"invented part, proxies", []string{"203.0.113.66, 192.0.2.1, 10.0.0.1"}, "192.0.2.1"},
		{"invented proxies", []string{"203.0.113.66, 10.6.6.6, 192.0.2.1, 10.0.0.1"}, "192.0.2.1"},
		{"invented IPv4-mapped", []string{"::ffff:10.6.6.6, 192.0.2.1, ::ffff:10.0.0.1"}, "192.0.2.1"},
		{"invented line", []string{"203.0.113.66", "192.0.2.1, 10.0.0.1"}, "192.0.2.1"},
		{"only proxies: the leftmost", []string{"10.0.0.1, fd00::2, 10.0.0.3"}, "10.0.0.1"},
		{"only proxies, nonsense", []string{"unknown, 10.0.0.1", "", "x, 10.0.0.3"}, "10.0.0.1"},
		{"several lines are one list, RFC 9110 section 5.2", []string{"192.0.2.1", "10.0.0.1", "10.0.0.2"}, "192.0.2.1"},
		{"several lines, only proxies", []string{"10.0.0.1", "10.0.0.2"}, "10.0.0.1"},
		{"nonsense between", []string{"192.0.2.1, unknown, , _x, unix:, <script>, 10.0.0.1, -"}, "192.0.2.1"},
		{"nonsense left", []string{`", \, [, 192.0.2.1`}, "192.0.2.1"},
		{"quotes quote nothing", []string{`"203.0.113.66, 10.0.0.1, 203.0.113.66"`}, "10.0.0.1"},
		{"ports", []string{"192.0.2.1:5678, [fd00::1]:80, 10.0.0.1:443"}, "192.0.2.1"},
		{"Forwarded is another grammar", []string{"for=203.0.113.66"}, ""},
		{"unmapped, without zone", []string{"::ffff:192.0.2.1%1"}, "192.0.2.1"},
	} {
		if got := clientOf(DefaultHeader, trusted, v.lines...); got != addr(v.want) {
			t.Errorf("%s: %q is %v, want %q", v.name, v.lines, got, v.want)
		}
	}
}

// TestForwarded begins with the examples of RFC 7239.
func TestForwarded(t *testing.T) {
	trusted := trust(t, proxies)
	for _, v := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"section 4, hidden", []string{`for="_gazonk"`}, ""},
		{"section 4, IPv6", []string{`For="[2001:db8:cafe::17]:4711"`}, "2001:db8:cafe::17"},
		{"section 4, parameters", []string{`for=192.0.2.60;proto=http;by=203.0.113.43`}, "192.0.2.60"},
		{"section 4, list", []string{`for=192.0.2.43, for=198.51.100.17`}, "198.51.100.17"},
		{"section 6, IPv4", []string{`for="192.0.2.43:47011"`}, "192.0.2.43"},
		{"section 6, IPv6", []string{`for="[2001:db8:cafe::17]:47011"`}, "2001:db8:cafe::17"},
		{"section 6.2", []string{`for=unknown`}, ""},
		{"section 6.3", []string{`for=_hidden, for=_SEVKISEK`}, ""},
		{"section 7.1", []string{`for=192.0.2.43,for="[2001:db8:cafe::17]",for=unknown`}, "2001:db8:cafe::17"},
		{"section 7.1, space", []string{`for=192.0.2.43, for="[2001:db8:cafe::17]", for=unknown`}, "2001:db8:cafe::17"},
		{"section 7.1, lines", []string{`for=192.0.2.43`, `for="[2001:db8:cafe::17]", for=unknown`}, "2001:db8:cafe::17"},
		{"section 7.4", []string{`for=192.0.2.43, for="[2001:db8:cafe::17]"`}, "2001:db8:cafe::17"},
		{"section 7.5", []string{`for=192.0.2.43, for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com`}, "198.51.100.17"},

		{"nothing", nil, ""},
		{"empty", []string{"", ",", ";", ";,;"}, ""},
		{"capitals", []string{`FOR=192.0.2.1`}, "192.0.2.1"},
		{"proxies", []string{`for=192.0.2.1, for=10.0.0.1;by=10.0.0.2, for="[fd00::1]:80"`}, "192.0.2.1"},
		{"only proxies: the leftmost", []string{`for=unknown, for=10.0.0.1`, `for="[fd00::1]", for=10.0.0.3`}, "10.0.0.1"},
		{"not the first parameter", []string{`proto=https;by="[2001:db8::1]";for=192.0.2.1;host=a`}, "192.0.2.1"},
		{"other parameters", []string{`by=203.0.113.66;host=203.0.113.66;proto=203.0.113.66;secret=203.0.113.66`}, ""},
		{"other names", []string{`xfor=203.0.113.66;for-=203.0.113.66;fo=203.0.113.66;=203.0.113.66;203.0.113.66`}, ""},
		{"no value", []string{`for=192.0.2.1, for, for=, for=""`}, "192.0.2.1"},
		{"space", []string{" for = 192.0.2.1 ;\tproto=http , for=\"10.0.0.1\" "}, "192.0.2.1"},
		{"invented part", []string{`for=203.0.113.66, for=192.0.2.1, for=10.0.0.1`}, "192.0.2.1"},
		{"invented in quotes", []string{`for=192.0.2.1;host="a, for=203.0.113.66"`}, "192.0.2.1"},
		{"invented behind an escaped quote", []string{`for=192.0.2.1;host="a\", for=203.0.113.66, b=\""`}, "192.0.2.1"},
		{"escaped backslash", []string{`for=203.0.113.66;host="a\\", for=192.0.2.1;host="b\\"`}, "192.0.2.1"},
		{"invented before an escaped backslash", []string{`for=192.0.2.1;host="a, for=203.0.113.66, \\"`}, "192.0.2.1"},
		{"space behind quotes", []string{"for=192.0.2.1;host=\"a, for=203.0.113.66, b\" \t, for=10.0.0.1"}, "192.0.2.1"},
		{"quotes that end with =", []string{`for=192.0.2.1;secret="a;for=203.0.113.66;b=";by=10.0.0.1`}, "192.0.2.1"},
		{"all in quotes", []string{`"a, for=203.0.113.66, b"`}, ""},
		{"X-Forwarded-For is another grammar", []string{`203.0.113.66, 203.0.113.66`}, ""},
	} {
		if got := clientOf("Forwarded", trusted, v.lines...); got != addr(v.want) {
			t.Errorf("%s: %q is %v, want %q", v.name, v.lines, got, v.want)
		}
	}
}

// TestHostileQuotes: what a client sends cannot hide or change what proxies append to
// it, even if it chooses the Host that a proxy writes between quotes.
func TestHostileQuotes(t *testing.T) {
	trusted := trust(t, proxies)
	for _, sent := range []string{
		`for=203.0.113.66;x="`, `for="`, `for="\`, `x="\"`, `x=\"`, `x="\\`, `"`, `""`, `\"`, `x="y="`, `x=""`, `x="";y="`, `x=", y="`,
		`x="a",y="b`, `x="a" b`, `for="[2001:db8::66`, `for="203.0.113.66", x="`, `x==="`, `="`, `=`, `for=`, `for=203.0.113.66`,
	} {
		for _, appended := range []string{
			`for=192.0.2.1`,
			`for="192.0.2.1:5678"`,
			`for=192.0.2.1;by="[fd00::1]:80", for=10.0.0.1`,
			`for=192.0.2.1;host=","`,
			`for=192.0.2.1;host=",a";proto=http`,
			`for=192.0.2.1;host=";a"`,
			`host=",";for="192.0.2.1"`,
			`for=192.0.2.1;host=""`,
			`for=192.0.2.1;host=",for=203.0.113.66,"`,
			`for=192.0.2.1;host="a;for=203.0.113.66;b="`,
			`for=192.0.2.1;host="\",for=203.0.113.66,\""`,
		} {
			line := sent + ", " + appended
			if got := clientOf("Forwarded", trusted, line); got != addr("192.0.2.1") {
				t.Errorf("%s is %v", line, got)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	trusted := trust(t, DefaultTrust)
	for _, v := range []struct{ header, line string }{
		{DefaultHeader, "192.0.2.1"},
		{DefaultHeader, "203.0.113.66, 192.0.2.1:5678, 10.0.0.1"},
		{DefaultHeader, "2001:db8::1, [fd00::1]:443, fe80::1%eth0, ::ffff:10.0.0.1"},
		{DefaultHeader, "unknown, _hidden, unix:, , 10.0.0.1"},
		{DefaultHeader, strings.Repeat("1", 1000)},
		{"X-Real-IP", "192.0.2.1"},
		{"Forwarded", `for=192.0.2.1;proto=http;by=203.0.113.43, for=10.0.0.1;host="a, b"`},
		{"Forwarded", `for="[2001:db8::1]:4711", for=unknown, for="_hidden", for="[fe80::1%eth0]"`},
	} {
		r := Rules{Header: v.header, Trusted: trusted}
		if n := testing.AllocsPerRun(100, func() {
			var c chain
			r.add(&c, v.line)
		}); n != 0 {
			t.Errorf("%s: %s: %v allocations", v.header, v.line, n)
		}
	}
}

// cpuTime returns how long this thread computes for f: other programs may have the processor meanwhile.
func cpuTime(t *testing.T, f func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	start := now()
	f()
	return now() - start
}

// TestLinear: a line of 64 KiB takes about as long as 16 lines of 4 KiB, whatever a
// client fills them with. A quadratic takes 16 times as long, and never comes near; the
// other tries are for when the garbage collector is busy.
func TestLinear(t *testing.T) {
	trusted := trust(t, proxies)
	for _, r := range []Rules{
		{Header: DefaultHeader, Trusted: trusted},
		{Header: "Forwarded", Trusted: trusted},
		{Header: DefaultHeader, Trusted: trusted, Hops: MaxHops},
		{Header: "Forwarded", Trusted: trusted, Hops: MaxHops},
	} {
		cost := func(line string, times int) time.Duration {
			return cpuTime(t, func() {
				for range times {
					var c chain
					r.add(&c, line)
				}
			})
		}
		for _, pattern := range []string{
			`="\`, `="`, `"`, `,`, `;`, `\`, `\"`, `\",`, `"\,`, `",`, `=",`, `a",`, `\\",`, `" ,`, `" `, ` `, `for="`, `for="\",`, `for=",";`,
			`for="10.0.0.1",`, `10.0.0.1,`, `:`, `[`, `%`, `1`,
		} {
			for _, around := range [][2]string{{"", ""}, {`="`, ``}, {``, `"  `}, {`a"`, `"`}} {
				line := func(size int) string { return around[0] + strings.Repeat(pattern, size/len(pattern)) + around[1] }
				short, long := line(4<<10), line(64<<10)
				for try := 1; ; try++ {
					many, one := cost(short, 16), cost(long, 1)
					if one <= 3*many+100*time.Microsecond {
						break
					}
					if try == 20 {
						t.Errorf("%s, %d hops: %q around %q: %v in one line, %v in 16", r.Header, r.Hops, around, pattern, one, many)
						break
					}
				}
			}
		}
	}
}
