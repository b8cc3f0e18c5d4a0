package worker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

// pool is a worker of slot 0 of 2 behind a proxy, and its master.
type pool struct {
	t       *testing.T
	master  *fdpass.Conn
	ln      *Listener
	back    chan fdpass.Handoff // what was handed back
	signals chan os.Signal
	served  chan error
	conns   chan *Conn // as they are accepted
}

// answer says what a handler got of a request.
func answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %q %v", r.URL.Path, body, err)
}

func newPool(t *testing.T, srv *http.Server) *pool {
	t.Helper()
	return newPoolOf(t, srv, testRules(t))
}

func newPoolOf(t *testing.T, srv *http.Server, rules forwarded.Rules) *pool {
	t.Helper()
	fdtest.NoLeaks(t)
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	master.SendDetails()
	back, err := openHandBack(file, rules, hash.DefaultConfig(), Place{Slot: 0, Slots: 2})
	fdtest.Check(t, err)
	source, err := newMailboxSource(file, back)
	fdtest.Check(t, err)
	p := &pool{
		t: t, master: master,
		ln:   &Listener{source: source, back: back, draining: make(chan struct{}), idle: make(chan struct{})},
		back: make(chan fdpass.Handoff, 1000), signals: make(chan os.Signal, 2), served: make(chan error, 1), conns: make(chan *Conn, 1000),
	}
	back.listener = p.ln
	connContext := srv.ConnContext
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		if conn, ok := c.(*Conn); ok {
			p.conns <- conn
		}
		return ctx
	}
	keepApart(srv, rules, hash.DefaultConfig())
	go func() { p.served <- serve(srv, p.ln, p.signals) }()
	received := make(chan struct{})
	go func() {
		defer close(received)
		for p.receive() {
		}
	}()
	t.Cleanup(func() {
		close(p.signals)
		fdtest.Receive(t, "end of Serve", p.served)
		master.Close()
		fdtest.Receive(t, "end of the mailbox", received)
		for len(p.back) > 0 {
			unix.Close((<-p.back).FD)
		}
	})
	return p
}

// receive takes what the worker sends.
func (p *pool) receive() bool {
	var m fdpass.Message
	if err := p.master.Receive(&m); err != nil {
		return false
	}
	for _, h := range m.Handoffs {
		p.back <- h
	}
	return true
}

// dial hands off a new connection.
func (p *pool) dial(flags fdpass.Flags) *net.TCPConn {
	p.t.Helper()
	return p.dialFrom(netip.AddrPort{}, flags)
}

// dialFrom is dial for a connection whose client the master knows; zero: it is the peer.
func (p *pool) dialFrom(at netip.AddrPort, flags fdpass.Flags) *net.TCPConn {
	p.t.Helper()
	client, fd := fdtest.Connection(p.t)
	defer unix.Close(fd)
	h := fdpass.Handoff{FD: fd, Client: at, Flags: flags, Details: "details"}
	fdtest.Check(p.t, p.master.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{h}))
	client.SetDeadline(time.Now().Add(fdtest.Patience))
	return client
}

// clientOfSlot is a client that belongs to a slot of 2.
func clientOfSlot(slot int) string {
	for i := 1; ; i++ {
		addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		if hash.DefaultConfig().Key(addr).Slot(2) == slot {
			return addr.String()
		}
	}
}

func request(slot int, path, rest string) string {
	if rest == "" {
		rest = "\r\n"
	}
	return "POST " + path + " HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: " + clientOfSlot(slot) + "\r\n" + rest
}

// reads fails unless the next response is want.
func reads(t *testing.T, r *bufio.Reader, want string) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != want {
		t.Fatalf("answer %q, %v, want %q", body, err, want)
	}
	return resp
}

// unread fails unless exactly this is unread in a connection that was handed back, which it closes. When it closes it,
// the proxy sees its end: nobody else has it.
func unread(t *testing.T, h fdpass.Handoff, proxy net.Conn, want string) {
	t.Helper()
	unreadOf(t, h, proxy.LocalAddr().String(), proxy, want)
}

func unreadOf(t *testing.T, h fdpass.Handoff, client string, proxy net.Conn, want string) {
	t.Helper()
	if h.Details != "details" || h.Client.String() != client || h.Flags != 0 {
		t.Errorf("handed back %+v", h)
	}
	file := os.NewFile(uintptr(h.FD), "handed back")
	got := make([]byte, len(want))
	file.SetReadDeadline(time.Now().Add(fdtest.Patience))
	n, err := io.ReadFull(file, got)
	if string(got[:n]) != want {
		t.Errorf("unread is %q, %v, want %q", got[:n], err, want)
	}
	file.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := file.Read(make([]byte, 1)); n > 0 {
		t.Errorf("there is more behind %q, %v", want, err)
	}
	file.Close()
	if n, err := proxy.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("somebody else has the connection, too: %v", err)
	}
}

// TestLookAtEveryCut: no byte of the next request is lost or comes twice, wherever it is cut, and whoever serves it.
func TestLookAtEveryCut(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	for _, rest := range []string{"", "Content-Length: 4\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"} {
		for slot := range 2 {
			second := request(slot, "/second", rest)
			head := strings.Index(second, "\r\n\r\n") + 4
			for cut := 1; cut <= len(second); cut++ {
				proxy := p.dial(0)
				r := bufio.NewReader(proxy)
				io.WriteString(proxy, request(slot, "/first", "")) // whose slot is the master's business
				reads(t, r, `/first "" <nil>`)
				io.WriteString(proxy, second[:cut])
				stays := slot == 0 && cut >= head
				if stays {
					io.WriteString(proxy, second[cut:])
					want := `/second "" <nil>`
					if rest != "" {
						want = `/second "body" <nil>`
					}
					reads(t, r, want)
					proxy.Close()
					continue
				}
				h := fdtest.Receive(t, "what is handed back", p.back)
				io.WriteString(proxy, second[cut:])
				unread(t, h, proxy, second)
			}
		}
	}
}

// TestLookWhileHandlerRuns: package http reads the first byte of the next request ahead, which is neither lost nor comes twice.
func TestLookWhileHandlerRuns(t *testing.T) {
	wait := newGate()
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			wait.pass()
		}
		answer(w, r)
	})})
	for slot := range 2 {
		second := request(slot, "/second", "Content-Length: 4\r\n\r\nbody")
		head := strings.Index(second, "\r\n\r\n") + 4
		for cut := 1; cut <= len(second); cut += 1 + cut/8 {
			proxy := p.dial(0)
			r := bufio.NewReader(proxy)
			io.WriteString(proxy, request(0, "/first", ""))
			fdtest.Receive(t, "the handler", wait.has)
			conn := fdtest.Receive(t, "connection", p.conns)
			io.WriteString(proxy, second[:cut])
			fdtest.Eventually(t, "a lent byte", conn.look.lent.Load)
			wait.open <- struct{}{}
			reads(t, r, `/first "" <nil>`)
			if slot == 0 && cut >= head {
				io.WriteString(proxy, second[cut:])
				reads(t, r, `/second "body" <nil>`)
				proxy.Close()
				continue
			}
			h := fdtest.Receive(t, "what is handed back", p.back)
			io.WriteString(proxy, second[cut:])
			unread(t, h, proxy, second)
		}
	}
}

type gate struct{ has, open chan struct{} }

func newGate() gate { return gate{make(chan struct{}), make(chan struct{})} }

func (g gate) pass() {
	g.has <- struct{}{}
	<-g.open
}

// TestLookStays: what cannot be handed back stays where it is, and what belongs elsewhere is answered with "Connection: close".
func TestLookStays(t *testing.T) {
	t.Run("pipelined", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
		proxy := p.dial(0)
		r := bufio.NewReader(proxy)
		io.WriteString(proxy, request(0, "/first", "")+request(0, "/second", "")+request(1, "/third", ""))
		reads(t, r, `/first "" <nil>`)
		if reads(t, r, `/second "" <nil>`).Close {
			t.Error("the same client's second request ends the connection")
		}
		if !reads(t, r, `/third "" <nil>`).Close {
			t.Error("another slot's request does not end the connection")
		}
	})
	t.Run("pipelined in part", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
		proxy := p.dial(0)
		r := bufio.NewReader(proxy)
		second := request(1, "/second", "")
		io.WriteString(proxy, request(0, "/first", "")+second[:3])
		reads(t, r, `/first "" <nil>`)
		io.WriteString(proxy, second[3:])
		if !reads(t, r, `/second "" <nil>`).Close {
			t.Error("another slot's request does not end the connection")
		}
	})
	t.Run("hijacked", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			got := make([]byte, 100)
			for rw.Reader.Buffered() < 1 { // what package http has read ahead comes from here
				if _, err := rw.Reader.Peek(1); err != nil {
					return
				}
			}
			n, _ := rw.Read(got)
			for n < len(request(1, "/second", "")) {
				more, err := c.Read(got[n:])
				if err != nil {
					t.Error(err)
					return
				}
				n += more
			}
			c.Write(got[:n])
		})})
		proxy := p.dial(0)
		io.WriteString(proxy, request(0, "/first", "")+"G")
		io.WriteString(proxy, request(1, "/second", "")[1:])
		want := "G" + request(1, "/second", "")[1:]
		got := make([]byte, len(want))
		if _, err := io.ReadFull(proxy, got); err != nil || string(got) != want {
			t.Errorf("read %q, %v, want %q", got, err, want)
		}
	})
	t.Run("no slots", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
		fdtest.Check(t, p.master.TrySendSlots(0, false))
		fdtest.Eventually(t, "the number", func() bool { return p.ln.back.slots.Load() == 0 })
		proxy := p.dial(0)
		r := bufio.NewReader(proxy)
		for range 3 {
			io.WriteString(proxy, request(1, "/", ""))
			reads(t, r, `/ "" <nil>`)
		}
	})
	t.Run("no trusted peer's", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
		proxy := p.dialFrom(netip.MustParseAddrPort("198.51.100.1:1"), fdpass.FlagProxied)
		io.WriteString(proxy, request(0, "/", ""))
		reads(t, bufio.NewReader(proxy), `/ "" <nil>`)
		if c := fdtest.Receive(t, "connection", p.conns); c.look != nil {
			t.Error("it is looked at")
		}
	})
}

// TestLookUnplaced: the first request of a connection is looked at if the master says that it has not seen any.
func TestLookUnplaced(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	proxy := p.dial(fdpass.FlagUnplaced)
	io.WriteString(proxy, request(1, "/", ""))
	unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, request(1, "/", ""))
	proxy = p.dial(fdpass.FlagUnplaced)
	io.WriteString(proxy, request(0, "/", ""))
	reads(t, bufio.NewReader(proxy), `/ "" <nil>`)
}

// TestLookResized: a request belongs where the number of slots says, which may change.
func TestLookResized(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	fdtest.Check(t, p.master.TrySendSlots(1, false))
	fdtest.Eventually(t, "the number", func() bool { return p.ln.back.slots.Load() == 1 })
	proxy := p.dial(0)
	r := bufio.NewReader(proxy)
	io.WriteString(proxy, request(0, "/", ""))
	reads(t, r, `/ "" <nil>`)
	io.WriteString(proxy, request(1, "/", ""))
	reads(t, r, `/ "" <nil>`)
	fdtest.Check(t, p.master.TrySendSlots(2, false))
	fdtest.Eventually(t, "the number", func() bool { return p.ln.back.slots.Load() == 2 })
	io.WriteString(proxy, request(1, "/", ""))
	unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, request(1, "/", ""))
}

// TestLookLongHead: a head that is longer than the server's buffer is looked at whole.
func TestLookLongHead(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	long := "X-Long: " + strings.Repeat("x", 10_000) + "\r\n\r\n"
	proxy := p.dial(0)
	r := bufio.NewReader(proxy)
	for _, rest := range []string{"", long, ""} {
		io.WriteString(proxy, request(0, "/", rest))
		reads(t, r, `/ "" <nil>`)
	}
	head := strings.Replace(request(1, "/", long), "X-Forwarded-For: "+clientOfSlot(1)+"\r\n", "", 1)
	head = strings.Replace(head, "\r\n\r\n", "\r\nX-Forwarded-For: "+clientOfSlot(1)+"\r\n\r\n", 1)
	io.WriteString(proxy, head)
	unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, head)
}

// TestLookDrain: a worker that drains hands back what is between two requests, at once, and the others when they are answered.
func TestLookDrain(t *testing.T) {
	wait := newGate()
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/busy" {
			wait.pass()
		}
		answer(w, r)
	})})
	idle := p.dial(0)
	io.WriteString(idle, request(0, "/", ""))
	reads(t, bufio.NewReader(idle), `/ "" <nil>`)
	busy := p.dial(0)
	io.WriteString(busy, request(0, "/busy", ""))
	fdtest.Receive(t, "the handler", wait.has)
	fdtest.Check(t, p.master.CloseWrite())
	unread(t, fdtest.Receive(t, "the idle connection", p.back), idle, "")
	wait.open <- struct{}{}
	if reads(t, bufio.NewReader(busy), `/busy "" <nil>`).Close {
		t.Error("the answer ends a connection that is handed back")
	}
	unread(t, fdtest.Receive(t, "the busy connection", p.back), busy, "")
	if err := fdtest.Receive(t, "end of Serve", p.served); err != nil {
		t.Error(err)
	}
	p.served <- nil
}

// TestLookMasterGone: without a master a request is served where it is.
func TestLookMasterGone(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	proxy := p.dial(0)
	r := bufio.NewReader(proxy)
	io.WriteString(proxy, request(0, "/", ""))
	reads(t, r, `/ "" <nil>`)
	p.master.Close()
	fdtest.Receive(t, "end of the mailbox", p.ln.Draining())
	io.WriteString(proxy, request(1, "/", ""))
	reads(t, r, `/ "" <nil>`)
}

// TestLookAtSessions: of a client that is no proxy, requests that name this worker stay, and so do those that name one which is
// no more, when the master has brought one; those that name another one go back. When another worker has taken the slot over, only those stay that
// name this one.
func TestLookAtSessions(t *testing.T) {
	own, gone, other := strings.Repeat("a", forwarded.TokenSize), strings.Repeat("b", forwarded.TokenSize), strings.Repeat("c", forwarded.TokenSize)
	t.Setenv(fdpass.EnvRoute, own)
	rules := forwarded.Rules{}
	var err error
	rules.Sessions, err = forwarded.ParseSessions("query:sid")
	fdtest.Check(t, err)
	config := hash.DefaultConfig()
	home, abroad := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.1")
	for config.Key(home).Slot(2) != 0 {
		home = home.Next()
	}
	for config.Key(abroad).Slot(2) != 1 {
		abroad = abroad.Next()
	}
	p := newPoolOf(t, &http.Server{Handler: http.HandlerFunc(answer)}, rules)
	from := func(client netip.Addr, sid string) (ask func(sid string, stays bool)) {
		at := netip.AddrPortFrom(client, 1)
		conn := p.dialFrom(at, 0)
		r := bufio.NewReader(conn)
		n := 0
		ask = func(sid string, stays bool) {
			t.Helper()
			n++
			path := fmt.Sprintf("/%d", n)
			head := "GET " + path + "?sid=" + sid + " HTTP/1.1\r\nHost: a\r\n\r\n"
			io.WriteString(conn, head)
			if stays {
				reads(t, r, path+` "" <nil>`)
				return
			}
			unreadOf(t, fdtest.Receive(t, "what is handed back", p.back), at.String(), conn, head)
		}
		ask(sid, true) // the master has placed it
		return ask
	}
	ask := from(home, "")
	ask("", true)
	ask("x."+own, true)
	ask("x."+gone, false)
	ask = from(home, "x."+gone)
	ask("y."+gone, true)
	ask("x."+other, false)
	ask = from(abroad, "x."+own)
	ask("x."+own, true)
	ask("", false)

	fdtest.Check(t, p.master.TrySendSlots(2, true))
	ask = from(home, "x."+own)
	ask("x."+own, true)
	ask("", false)
	ask = from(home, "x."+own)
	ask("x."+gone, false)
	fdtest.Check(t, p.master.TrySendSlots(2, false))
	ask = from(home, "x."+own)
	ask("", true)
	ask("x."+gone, false) // the master may have another view of it now
}

// lookedAt returns a connection that is looked at, and its client, without a server. It checks for leaks.
func lookedAt(t *testing.T) (client net.Conn, c *Conn) {
	t.Helper()
	fdtest.NoLeaks(t)
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	t.Cleanup(func() { master.Close() })
	back, err := openHandBack(file, testRules(t), hash.DefaultConfig(), Place{Slot: 0, Slots: 2})
	fdtest.Check(t, err)
	t.Cleanup(back.close)
	t.Cleanup(func() { file.Close() })
	client, fd := fdtest.Connection(t)
	t.Cleanup(func() { client.Close() })
	at := client.LocalAddr().(*net.TCPAddr).AddrPort()
	ln := &Listener{back: back, draining: make(chan struct{}), idle: make(chan struct{})}
	ln.count(1)
	c = newConn(ln, fdpass.Handoff{FD: fd, Client: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
	t.Cleanup(func() { c.Close() })
	return client, c
}

// TestLookAllocatesNothing: a request that stays costs a peek, and no allocation.
func TestLookAllocatesNothing(t *testing.T) {
	client, c := lookedAt(t)
	head, buffer := []byte(request(0, "/", "")), make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		c.ExpectRequest()
		client.Write(head)
		if n, err := c.Read(buffer); n != len(head) || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestReportNamed: requests that name the worker are reported, many at a time.
func TestReportNamed(t *testing.T) {
	var h handBack
	asked := 0
	h.reportSoon = func() { asked++ }
	for range 3 {
		h.wasNamed()
	}
	if n, _ := h.reported(); n != 3 || asked != 1 {
		t.Errorf("%d are reported, %d times", n, asked)
	}
	h.wasNamed()
	if n, _ := h.reported(); n != 4 || asked != 2 {
		t.Errorf("%d are reported, %d times", n, asked)
	}
	if n, _ := (*handBack)(nil).reported(); n != 0 {
		t.Errorf("%d are reported where nothing is handed back", n)
	}
}
