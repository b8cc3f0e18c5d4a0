package clientip

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
)

// shortHead names 192.0.2.1.
const shortHead = "GET / HTTP/1.1\nX-Forwarded-For:192.0.2.1\n\r\n"

// answer is what Wait says.
type answer struct {
	client Client
	err    error
	after  time.Duration
}

// wait waits as the balancer does: with a file that is in Go's poller.
func (p *pair) wait(ctx context.Context, f *Finder) <-chan answer {
	p.file = os.NewFile(uintptr(p.FD), "waiting connection")
	answers := make(chan answer, 1)
	go func() {
		start := time.Now()
		client, err := f.Wait(ctx, p.file, &p.Handoff, false)
		answers <- answer{client, err, time.Since(start)}
	}()
	return answers
}

// wants fails unless Wait answers this soon.
func wants(t *testing.T, answers <-chan answer, client Client, err error) (a answer) {
	t.Helper()
	select {
	case a = <-answers:
	case <-time.After(2 * bound):
		t.Fatal("no answer")
	}
	if a.client != client || a.err != err {
		t.Fatalf("%v, %v, want %v, %v", a.client, a.err, client, err)
	}
	return a
}

// open fails if Wait answers what has arrived. The poller wakes it once more than there
// is something new: when the connection is added.
func open(t *testing.T, answers <-chan answer) {
	t.Helper()
	fdtest.Eventually(t, "waits in the poller", func() bool { return inPoller() || len(answers) > 0 })
	for range 10 {
		if len(answers) > 0 {
			t.Fatalf("answers too soon: %+v", <-answers)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// segments sends some, each when Wait has looked at the one before.
func (p *pair) segments(t *testing.T, answers <-chan answer, parts ...string) {
	t.Helper()
	for _, part := range parts {
		fdtest.Eventually(t, "waits in the poller", func() bool { return inPoller() || len(answers) > 0 })
		_, err := p.client.Write([]byte(part)) // a PROXY header is taken when it is whole: send would not see it
		fdtest.Check(t, err)
	}
}

// padded returns a head of so many bytes that names a client at its end.
func padded(size int, client string) string {
	named := strings.TrimPrefix(xff(client), request)
	return request + "A:" + strings.Repeat("b", size-len(request)-len("A:\r\n")-len(named)) + "\r\n" + named
}

// late is a connection whose client is known only when all has come.
type late struct {
	name, sent, client string
	key                string // the header that is the client's key
	text               string // what the key is made of, "" for the client's address
	taken              int
}

var lates = []late{
	{"head", shortHead, "192.0.2.1", "", "", 0},
	{"head with a key", "GET / HTTP/1.1\r\nX-Session:a\r\n\r\n", here, "X-Session", "a", 0},
	{"no HTTP", "SSH-2.0-OpenSSH_9.6\r", here, "", "", 0},
	{"PROXY 1", proxyV1, "192.0.2.7", "", "", len(proxyV1)},
	{"PROXY 2", proxy2b, "2001:db8::7", "", "", len(proxy2b)},
	{"PROXY 1 and head", unknown1 + shortHead, "192.0.2.1", "", "", len(unknown1)},
	{"PROXY 2 and head", local2 + shortHead, "192.0.2.1", "", "", len(local2)},
}

func (v *late) finder(t *testing.T) *Finder {
	return finder(t, rulesOf(t, loopback, v.key), func(cfg *Config) { cfg.ProxyProtocol = v.taken > 0 })
}

// arrives waits for the client, while send sends. A worker reads the rest then.
func (v *late) arrives(t *testing.T, f *Finder, send func(*pair, <-chan answer)) {
	t.Helper()
	p := connect(t)
	answers := p.wait(t.Context(), f)
	send(p, answers)
	want := f.from(v.client)
	if v.text != "" {
		want.Key, want.Told = f.cfg.Hash.Text(v.text), true
	}
	wants(t, answers, want, nil)
	if (p.Flags == fdpass.FlagProxied) != (v.taken > 0) {
		t.Errorf("flags %b", p.Flags)
	}
	fdtest.Eventually(t, "all arrives", func() bool { return p.unread(t) == len(v.sent)-v.taken })
	p.reads(t, v.sent[v.taken:])
	p.client.Close()
	p.file.Close()
}

// TestWaitBytes: one at a time.
func TestWaitBytes(t *testing.T) {
	for _, v := range append(lates, late{"500 bytes", padded(500, "192.0.2.1"), "192.0.2.1", "", "", 0}) {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			v.arrives(t, v.finder(t), func(p *pair, answers <-chan answer) {
				last := len(v.sent) - 1
				p.segments(t, answers, strings.Split(v.sent[:last], "")...)
				open(t, answers)
				p.segments(t, answers, v.sent[last:])
			})
		})
	}
}

// TestWaitCuts: two segments, cut everywhere, and three.
func TestWaitCuts(t *testing.T) {
	step := 1
	if testing.Short() { // as in a virtual machine, where all of them take minutes
		step = 7
	}
	for _, v := range lates {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := v.finder(t)
			for i := 1; i < len(v.sent); i += step {
				v.arrives(t, f, func(p *pair, answers <-chan answer) {
					p.segments(t, answers, v.sent[:i])
					open(t, answers)
					p.segments(t, answers, v.sent[i:])
				})
				for j := i + 1; j < len(v.sent); j += 1 + len(v.sent)/4 {
					v.arrives(t, f, func(p *pair, answers <-chan answer) {
						p.segments(t, answers, v.sent[:i], v.sent[i:j], v.sent[j:])
					})
				}
			}
		})
	}
}

// TestWaitArrived: what is there before anybody waits is looked at. The poller reports it
// once more, when the connection is added to it, and that is not the end.
func TestWaitArrived(t *testing.T) {
	fdtest.NoLeaks(t)
	f := finder(t, rulesOf(t, loopback, ""), nil)
	for n := 1; n <= len(shortHead); n++ {
		p := connect(t)
		p.send(t, shortHead[:n])
		answers := p.wait(t.Context(), f)
		if n < len(shortHead) {
			open(t, answers)
			p.segments(t, answers, shortHead[n:])
		}
		wants(t, answers, f.from("192.0.2.1"), nil)
		p.reads(t, shortHead)
		p.file.Close()
	}
}

// TestWaitEnd: a FIN is the end of what can be awaited, and what has come is all; a reset is
// the end of the connection. Both before Wait and while it waits.
func TestWaitEnd(t *testing.T) {
	const inner = loopback + ",192.0.2.0/24"
	full := padded(MinHeaderLimit+2, "192.0.2.1")[:MinHeaderLimit]
	for _, v := range []struct {
		name    string
		proxy   bool
		trusted string
		sent    string
		client  string // after a FIN
		err     error
		answers bool // without the end
	}{
		{"nothing", false, loopback, "", here, nil, false},
		{"empty lines", false, loopback, "\r\n", here, nil, false},
		{"half a head", false, loopback, "GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.66\r\n", here, nil, false},
		{"whole head", false, loopback, shortHead, "192.0.2.1", nil, true},
		{"long head", false, loopback, full, "", ErrTooLarge, true},
		{"PROXY, nothing", true, loopback, "", "", ErrGone, false},
		{"PROXY, half", true, loopback, proxyV1[:9], "", ErrBadProxyHeader, false},
		{"PROXY, half of version 2", true, loopback, proxy2b[:20], "", ErrBadProxyHeader, false},
		{"PROXY, whole", true, loopback, proxyV1, "192.0.2.7", nil, true},
		{"PROXY, missing", true, loopback, shortHead, "", ErrNoProxyHeader, true},
		{"PROXY and nothing", true, inner, proxyV1, "192.0.2.7", nil, false},
		{"PROXY and half a head", true, inner, proxy2 + "GET", "192.0.2.7", nil, false},
		{"PROXY and whole head", true, inner, proxy2 + xff("198.51.100.9"), "198.51.100.9", nil, true},
		{"peer is no proxy, nothing", true, elsewhere, "", here, nil, false},
		{"peer is no proxy, half a PROXY", true, elsewhere, "PRO", here, nil, false},
		{"peer is no proxy, PROXY", true, elsewhere, proxyV1, "", ErrProxyForbidden, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := finder(t, rulesOf(t, v.trusted, ""), func(cfg *Config) { cfg.ProxyProtocol, cfg.HeaderLimit = v.proxy, MinHeaderLimit })
			var want Client
			if v.err == nil {
				want = f.from(v.client)
			}
			for _, reset := range []bool{false, true} {
				want, err, end := want, v.err, (*pair).finish
				if reset {
					want, err, end = Client{}, ErrGone, (*pair).reset
				}
				p := connect(t)
				p.send(t, v.sent)
				end(p, t)
				wants(t, p.wait(t.Context(), f), want, err)
				if v.answers {
					continue
				}
				p = connect(t)
				answers := p.wait(t.Context(), f)
				p.segments(t, answers, v.sent)
				open(t, answers)
				end(p, t)
				wants(t, answers, want, err)
			}
			p := connect(t) // the end comes with the last segment, or right behind
			answers := p.wait(t.Context(), f)
			p.segments(t, answers, v.sent)
			fdtest.Check(t, p.client.CloseWrite())
			wants(t, answers, want, v.err)
		})
	}
}

// TestWaitTimeout: one for all that must come, however often something comes.
func TestWaitTimeout(t *testing.T) {
	const timeout, slack = 100 * time.Millisecond, 5 * time.Second
	const inner = loopback + ",192.0.2.0/24"
	for _, v := range []struct {
		name, sent string
		drip       string // comes again and again
		proxy      bool
		trusted    string
		err        error
	}{
		{"silent", "", "", false, loopback, ErrSilent},
		{"only empty lines", "\r\n", "\n", false, loopback, ErrSilent},
		{"half a head", "GET / HTTP/1.1\r\nHost: x\r\n", "", false, loopback, ErrPartial},
		{"byte by byte", request, "A", false, loopback, ErrPartial},
		{"header by header", request, "A:b\r\n", false, loopback, ErrPartial},
		{"PROXY, silent", "", "", true, loopback, ErrSilent},
		{"PROXY, half", proxyV1[:9], "", true, loopback, ErrSilent},
		{"PROXY and silent", proxyV1, "", true, inner, ErrSilent},
		{"PROXY and byte by byte", proxyV1 + request, "A", true, inner, ErrPartial},
		{"peer is no proxy, silent", "", "", true, elsewhere, ErrSilent},
	} {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := finder(t, rulesOf(t, v.trusted, ""), func(cfg *Config) {
				cfg.ProxyProtocol, cfg.HeaderTimeout, cfg.HeaderLimit = v.proxy, timeout, MaxHeaderLimit
			})
			if f.Timeout() != timeout {
				t.Errorf("timeout %v, want %v", f.Timeout(), timeout)
			}
			p := connect(t)
			p.send(t, v.sent)
			answers := p.wait(t.Context(), f)
			var done atomic.Bool
			dripped := make(chan int)
			go func() {
				n := 0
				for ; v.drip != "" && !done.Load(); n++ {
					p.client.Write([]byte(v.drip))
					time.Sleep(time.Millisecond)
				}
				dripped <- n
			}()
			a := wants(t, answers, Client{}, v.err)
			done.Store(true)
			if n := <-dripped; v.drip != "" && n < 2 {
				t.Errorf("only %d drips in %v", n, a.after)
			}
			if a.after < timeout || a.after > timeout+slack {
				t.Errorf("after %v, want %v", a.after, timeout)
			}
		})
	}
}

// TestWaitOptional: who may do without a PROXY header, and says nothing that begins one, is itself when the time is over; and if
// it ends, it was a health check.
func TestWaitOptional(t *testing.T) {
	for _, v := range []struct {
		name, trusted, sent string
		ends                bool
		client              string
		err                 error
	}{
		{"silent", loopback, "", false, here, nil},
		{"silent, and no proxy", elsewhere, "", false, here, nil},
		{"no signature", loopback, "PRO", false, here, nil},
		{"half a header", loopback, proxyV1[:9], false, "", ErrSilent},
		{"ends", loopback, "", true, "", ErrGone},
		{"ends after what is none", loopback, "\r\n", true, here, nil},
		{"ends within a header", loopback, proxy2[:14], true, "", ErrBadProxyHeader},
	} {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			const timeout = 20 * time.Millisecond
			f := finder(t, forwarded.Rules{Trusted: trust(t, v.trusted)}, func(cfg *Config) {
				cfg.ProxyProtocol, cfg.ProxyOptional = true, trust(t, here)
				if !v.ends {
					cfg.HeaderTimeout = timeout
				}
			})
			p := connect(t)
			p.send(t, v.sent)
			if v.ends {
				p.finish(t)
			}
			var want Client
			if v.err == nil {
				want = f.from(v.client)
			}
			if a := wants(t, p.wait(t.Context(), f), want, v.err); !v.ends && a.after < timeout {
				t.Errorf("after %v, want %v", a.after, timeout)
			}
		})
	}
}

// TestWaitLastLook: when the time is over, what has come counts.
func TestWaitLastLook(t *testing.T) {
	f := finder(t, rulesOf(t, loopback, ""), func(cfg *Config) { cfg.HeaderTimeout = time.Nanosecond })
	for sent, want := range map[string]error{"": ErrSilent, "GET": ErrPartial, shortHead: nil} {
		p := connect(t)
		p.send(t, sent)
		client := Client{}
		if want == nil {
			client = f.from("192.0.2.1")
		}
		wants(t, p.wait(t.Context(), f), client, want)
	}
}

// TestWaitContext: when ctx ends, Wait looks once more and returns at once.
func TestWaitContext(t *testing.T) {
	for sent, want := range map[string]error{"": ErrSilent, "\r\n": ErrSilent, "GET": ErrPartial} {
		t.Run(fmt.Sprintf("%q", sent), func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := finder(t, rulesOf(t, loopback, ""), nil)
			p := connect(t)
			p.send(t, sent)
			ctx, cancel := context.WithCancel(t.Context())
			answers := p.wait(ctx, f)
			open(t, answers)
			cancel()
			if a := wants(t, answers, Client{}, want); a.after > bound/2 {
				t.Errorf("after %v", a.after)
			}

			p = connect(t) // nobody has looked before
			p.send(t, sent)
			wants(t, p.wait(ctx, f), Client{}, want)
			p = connect(t)
			p.send(t, sent+strings.TrimPrefix(shortHead, sent))
			wants(t, p.wait(ctx, f), f.from("192.0.2.1"), nil)
		})
	}
}

// TestWaitLimit: what becomes too long is too long as soon as it is.
func TestWaitLimit(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, limit := range []int{MinHeaderLimit, 16 << 10, MaxHeaderLimit} {
		f := finder(t, rulesOf(t, loopback, ""), func(cfg *Config) { cfg.HeaderLimit = limit })
		long := padded(limit+1, "192.0.2.1")
		p := connect(t)
		answers := p.wait(t.Context(), f)
		p.segments(t, answers, long[:limit/2], long[limit/2:limit-1])
		open(t, answers)
		p.segments(t, answers, long[limit-1:limit])
		wants(t, answers, Client{}, ErrTooLarge)
	}
}

// TestWaitLongest: a head as long as the highest limit arrives wholly, although nothing is
// read: it fits into the default receive buffer.
func TestWaitLongest(t *testing.T) {
	const inner = loopback + ",192.0.2.0/24"
	for _, v := range []struct {
		name, before string
		segment      int // bytes in one
	}{
		{"at once", "", MaxHeaderLimit},
		{"in segments of Ethernet", "", 1448},
		{"in small segments", "", 100},
		{"behind PROXY", proxyV1, MaxHeaderLimit},
		{"behind PROXY, in segments", proxy2b, 1448},
		{"behind the longest PROXY", signatureV2 + "\x21\x11\xff\xf0" + proxy2[16:] + strings.Repeat("\x00", 0xfff0-12), MaxHeaderLimit},
	} {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := finder(t, rulesOf(t, inner+",2001:db8::/32", ""), func(cfg *Config) { cfg.ProxyProtocol, cfg.HeaderLimit = v.before != "", MaxHeaderLimit })
			head := padded(MaxHeaderLimit, "198.51.100.9")
			p := connect(t)
			answers := p.wait(t.Context(), f)
			sent := make(chan error, 1)
			go func() {
				var err error
				for rest := v.before + head; rest != "" && err == nil; {
					n := min(v.segment, len(rest))
					_, err = p.client.Write([]byte(rest[:n]))
					rest = rest[n:]
				}
				sent <- err
			}()
			wants(t, answers, f.from("198.51.100.9"), nil)
			fdtest.Check(t, <-sent)
			p.reads(t, head)
		})
	}
}

// TestWaitMany: one Finder for many that wait at the same time, each with an address of its
// own.
func TestWaitMany(t *testing.T) {
	fdtest.NoLeaks(t)
	const many = 50
	f := finder(t, rulesOf(t, loopback, "X-Session"), nil)
	name := func(i int) string { return forwarded.DefaultHeader[:1+i%10] + string(rune('a'+i%26)) }
	pairs, answers := make([]*pair, many), make([]<-chan answer, many)
	for i := range many {
		pairs[i] = connect(t)
		answers[i] = pairs[i].wait(t.Context(), f)
	}
	heads := make([]string, many)
	for i := range many {
		heads[i] = xff("192.0.2.1", "X-Session: "+name(i))
	}
	for cut := range 4 {
		for i, p := range pairs {
			n := len(heads[i])
			_, err := p.client.Write([]byte(heads[i][n*cut/4 : n*(cut+1)/4]))
			fdtest.Check(t, err)
		}
	}
	for i := range many {
		want := f.from("192.0.2.1")
		want.Key, want.Told = f.cfg.Hash.Text(name(i)), true
		wants(t, answers[i], want, nil)
	}
}

// TestWaitNoFile: a file that cannot wait is an error, and nobody's.
func TestWaitNoFile(t *testing.T) {
	f := finder(t, rulesOf(t, loopback, ""), nil)
	p := connect(t)
	p.send(t, shortHead)
	p.file = os.NewFile(uintptr(p.FD), "closed connection")
	fdtest.Check(t, p.file.Close())
	for _, file := range []*os.File{nil, p.file} {
		if client, err := f.Wait(t.Context(), file, &fdpass.Handoff{FD: -1}, false); err == nil || client != (Client{}) {
			t.Errorf("%v, %v", client, err)
		}
	}
}
