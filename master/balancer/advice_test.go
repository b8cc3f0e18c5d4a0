package balancer

import (
	"bytes"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
)

var gateway = netip.MustParseAddr("198.51.100.7")

// from returns a connection of a client that a peer speaks for.
func from(client, peer netip.Addr) connection {
	return connection{
		Handoff: fdpass.Handoff{Client: netip.AddrPortFrom(peer, 1)},
		client:  clientip.Client{Addr: client, Key: hash.DefaultConfig().Key(client)},
	}
}

// arrivals is a window of connections, of which the gateway has so many, spread evenly, one of them first. The others are of a client each.
func arrivals(hits int) (window []connection) {
	for i := windowLen - 1; i >= 0; i-- {
		client := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		if (i+1)*hits/windowLen > i*hits/windowLen {
			client = gateway
		}
		window = append(window, from(client, client))
	}
	return window
}

// lookAt has advice look at connections, in batches.
func lookAt(v *advice, m *majority, all []connection) {
	for len(all) > 0 {
		n := min(len(all), fdpass.MaxBatch)
		v.look(all[:n], m)
		all = all[n:]
	}
}

// advises returns advice, and what it has written.
func advises(change func(*clientip.Config)) (v *advice, log func() []string) {
	cfg := clientip.DefaultConfig()
	change(&cfg)
	var out bytes.Buffer
	v = newAdvice(hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: true, Mutex: new(sync.Mutex)}), &cfg)
	return v, func() []string { return strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\n' }) }
}

func noProxy(*clientip.Config) {}

// TestMajority: a client with more than half of two windows is warned of, once, and no client with half.
func TestMajority(t *testing.T) {
	const half = windowLen / 2
	for name, c := range map[string]struct {
		hits  []int // of each window
		pause time.Duration
		want  int
	}{
		"all":                  {[]int{windowLen, windowLen}, 0, 1},
		"more than half":       {[]int{half + 40, half + 40, half + 40}, 0, 1},
		"half":                 {[]int{half, half, half, half}, 0, 0},
		"less":                 {[]int{half - 40, half - 40, half - 40}, 0, 0},
		"one window":           {[]int{windowLen}, 0, 0},
		"not the next":         {[]int{windowLen, 0, windowLen, half, 0}, 0, 0},
		"after others":         {[]int{0, 0, windowLen, windowLen}, 0, 1},
		"again and again":      {[]int{windowLen, windowLen, windowLen, 0, windowLen, windowLen}, 0, 1},
		"a window at a time":   {[]int{windowLen, windowLen}, windowTime + time.Second, 1},
		"in a window too long": {[]int{windowLen, windowLen, windowLen, windowLen}, windowTime + 2*time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, log := advises(noProxy)
				var m majority
				for i, hits := range c.hits {
					window := arrivals(hits)
					if c.pause > windowTime+time.Second {
						lookAt(v, &m, window[:1])
						time.Sleep(c.pause)
						window = window[1:]
					} else if i > 0 {
						time.Sleep(c.pause)
					}
					lookAt(v, &m, window)
				}
				lines := log()
				if len(lines) != c.want {
					t.Fatalf("%d warnings, want %d: %q", len(lines), c.want, lines)
				}
				for _, line := range lines {
					if !strings.Contains(line, `"client":"`+gateway.String()+`"`) || !strings.Contains(line, `"connections":1`) {
						t.Error(line)
					}
				}
			})
		})
	}
}

// TestLargest: the share of a client with more than half is told, also long after the warning, as long as connections come.
func TestLargest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := advises(noProxy)
		b := &Balancer{advice: v}
		var m majority
		for i, c := range []struct {
			hits  int
			share float64
		}{{900, -1}, {900, 0.9}, {600, 0.6}, {100, 0}, {900, 0}, {900, 0.9}} {
			lookAt(v, &m, arrivals(c.hits))
			l, known := b.Largest()
			if known != (c.share >= 0) || known && (math.Abs(l.Share()-c.share) > 0.02 || l.Client.IsValid() != (c.share > 0) || l.Client.IsValid() && l.Client != gateway || l.Of < windowLen) {
				t.Errorf("window %d, %d of %d: %+v, %v, want %v", i, c.hits, windowLen, l, known, c.share)
			}
		}
		time.Sleep(windowTime + time.Second)
		if l, known := b.Largest(); known {
			t.Errorf("after a pause: %+v", l)
		}
	})
}

// TestMajoritySlotAddress: what comes to slots' own addresses is a proxy's, which chooses the slot.
func TestMajoritySlotAddress(t *testing.T) {
	v, log := advises(noProxy)
	var m majority
	for range 3 {
		window := arrivals(windowLen)
		for i := range window {
			window[i].addressed = true
		}
		lookAt(v, &m, window)
	}
	if lines := log(); len(lines) > 0 {
		t.Error(lines)
	}
}

// TestMajorityRemedy fits what is configured already.
func TestMajorityRemedy(t *testing.T) {
	header := func(c *clientip.Config) { c.Rules.Header = forwarded.DefaultHeader }
	for want, change := range map[string]func(*clientip.Config){
		"--behind-proxy or --proxy-protocol": noProxy,
		"--behind-proxy, too":                func(c *clientip.Config) { c.ProxyProtocol = true },
		"add it to --trusted-proxies":        header,
		"--trusted-hops with the number":     func(c *clientip.Config) { header(c); c.Rules.Hops = 2 },
		"header:X-Session":                   func(c *clientip.Config) { header(c); c.Rules.Keys, _ = forwarded.ParseKeys("header:X-Session") },
		"have it send X-Forwarded-For": func(c *clientip.Config) {
			header(c)
			c.Rules.Trusted, _ = forwarded.ParseTrust(gateway.String())
		},
	} {
		v, log := advises(change)
		var m majority
		for range 2 {
			lookAt(v, &m, arrivals(windowLen*3/4))
		}
		if lines := log(); len(lines) != 1 || !strings.Contains(lines[0], want) || !strings.Contains(lines[0], `"share":0.75`) {
			t.Errorf("%q, want %q", lines, want)
		}
	}
}

// TestTrustedClient: a proxy speaks for a client that is itself trusted by default.
func TestTrustedClient(t *testing.T) {
	proxy, intranet := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.7.7")
	for name, c := range map[string]struct {
		trusted      string
		hops         int
		client, peer netip.Addr
		warns        bool
	}{
		"intranet":                {forwarded.DefaultTrust, 0, intranet, proxy, true},
		"IPv6":                    {forwarded.DefaultTrust, 0, netip.MustParseAddr("fd00::7"), proxy, true},
		"more than the default":   {forwarded.DefaultTrust + ",198.51.100.0/24", 0, intranet, proxy, true},
		"from everywhere":         {forwarded.DefaultTrust, 0, gateway, proxy, false},
		"a proxy without header":  {forwarded.DefaultTrust, 0, proxy, proxy, false},
		"on the proxy's machine":  {forwarded.DefaultTrust, 0, netip.MustParseAddr("127.0.0.1"), proxy, false},
		"only the proxy":          {proxy.String(), 0, intranet, proxy, false},
		"the proxies' own subnet": {"10.0.0.0/24", 0, netip.MustParseAddr("10.0.0.9"), proxy, false},
		"proxies are counted":     {forwarded.DefaultTrust, 1, intranet, proxy, false},
	} {
		v, log := advises(func(cfg *clientip.Config) {
			cfg.Rules.Header, cfg.Rules.Hops = forwarded.DefaultHeader, c.hops
			cfg.Rules.Trusted, _ = forwarded.ParseTrust(c.trusted)
		})
		for range 3 {
			v.look([]connection{from(gateway, proxy), from(c.client, c.peer)}, new(majority))
		}
		lines := log()
		if warns := len(lines) == 1 && strings.Contains(lines[0], c.client.String()) && strings.Contains(lines[0], "--trusted-proxies"); warns != c.warns || !warns && len(lines) > 0 {
			t.Errorf("%s: %q, want a warning: %v", name, lines, c.warns)
		}
	}
}

// TestAdviceAllocatesNothing, as long as there is nothing to say.
func TestAdviceAllocatesNothing(t *testing.T) {
	v, log := advises(func(c *clientip.Config) { c.Rules.Header = forwarded.DefaultHeader })
	window := arrivals(windowLen / 2)
	for i := range window {
		window[i].Client = netip.AddrPortFrom(window[i].client.Addr, 1)
	}
	var m majority
	if n := testing.AllocsPerRun(10, func() { lookAt(v, &m, window) }); n != 0 || len(log()) > 0 {
		t.Errorf("allocates %v times a window, writes %q", n, log())
	}
}

// TestNoteOpen: a client with more than half of many connections that are open is known and warned of, once.
func TestNoteOpen(t *testing.T) {
	open := func(hits, of int) (all []netip.Addr) {
		for i := range of {
			addr := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			if (i+1)*hits/of > i*hits/of {
				addr = gateway
			}
			all = append(all, addr)
		}
		return all
	}
	v, log := advises(noProxy)
	b := &Balancer{advice: v}
	b.cfg.Clients.Hash = hash.DefaultConfig()
	b.NoteOpen(open(openLen-1, openLen-1))
	if l, known := b.Largest(); known {
		t.Errorf("of a few: %+v", l)
	}
	b.NoteOpen(open(100, 200))
	if l, known := b.Largest(); !known || l.Client.IsValid() || l.Of != 200 || len(log()) != 0 {
		t.Errorf("with a half: %+v, %v, %q", l, known, log())
	}
	for range 3 {
		b.NoteOpen(open(120, 200))
		if l, known := b.Largest(); !known || l.Client != gateway || l.Share() != 0.6 {
			t.Errorf("%+v, %v", l, known)
		}
	}
	if lines := log(); len(lines) != 1 || !strings.Contains(lines[0], gateway.String()) || !strings.Contains(lines[0], "--behind-proxy") {
		t.Errorf("%q", lines)
	}
}
