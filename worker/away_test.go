package worker

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// sendAway has the worker hand a connection back on which it has answered a request.
func (p *pool) sendAway(conn *Conn, proxy net.Conn) fdpass.Handoff {
	p.t.Helper()
	fdtest.Eventually(p.t, "that the next request is waited for", conn.look.waiting.Load) // else its first byte may be lent
	io.WriteString(proxy, request(1, "/elsewhere", ""))
	h := fdtest.Receive(p.t, "what is handed back", p.back)
	fdtest.Eventually(p.t, "that it is away", func() bool { return p.ln.Open() == 0 })
	return h
}

// elsewhere is the other worker: it reads the request and answers.
func (p *pool) elsewhere(h fdpass.Handoff, r *bufio.Reader) {
	p.t.Helper()
	dup, err := unix.FcntlInt(uintptr(h.FD), unix.F_DUPFD_CLOEXEC, 3)
	fdtest.Check(p.t, err)
	file := os.NewFile(uintptr(dup), "elsewhere")
	defer file.Close()
	file.SetReadDeadline(time.Now().Add(fdtest.Patience))
	if _, err := io.ReadFull(file, make([]byte, len(request(1, "/elsewhere", "")))); err != nil {
		p.t.Fatal(err)
	}
	io.WriteString(file, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere")
	reads(p.t, r, "there")
}

// handOff hands a connection off, and closes it here.
func (p *pool) handOff(h fdpass.Handoff) {
	p.t.Helper()
	defer unix.Close(h.FD)
	fdtest.Check(p.t, p.master.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{h}))
}

// isAway tells how many connections the worker waits for.
func (p *pool) isAway() int {
	p.ln.back.mu.Lock()
	defer p.ln.back.mu.Unlock()
	return len(p.ln.back.away)
}

// leave has a connection handed back that has been accepted, and answered a request.
func (p *pool) leave() (conn *Conn, proxy *net.TCPConn, r *bufio.Reader, h fdpass.Handoff) {
	p.t.Helper()
	proxy = p.dial(0)
	r = bufio.NewReader(proxy)
	io.WriteString(proxy, request(0, "/", ""))
	reads(p.t, r, `/ "" <nil>`)
	conn = fdtest.Receive(p.t, "connection", p.conns)
	h = p.sendAway(conn, proxy)
	fdtest.Eventually(p.t, "that it is waited for", func() bool { return p.isAway() == 1 })
	return conn, proxy, r, h
}

// TestAway: to package http a connection that comes back was never away.
func TestAway(t *testing.T) {
	states := make(chan http.ConnState, 1000)
	p := newPool(t, &http.Server{
		Handler: http.HandlerFunc(answer), ConnState: func(_ net.Conn, s http.ConnState) { states <- s },
		IdleTimeout: time.Hour, ReadHeaderTimeout: time.Hour, WriteTimeout: time.Hour,
	})
	conn, proxy, r, h := p.leave()
	for range 5 {
		p.elsewhere(h, r)
		io.WriteString(proxy, request(0, "/back", "Content-Length: 4\r\n\r\nbody"))
		p.handOff(h)
		reads(t, r, `/back "body" <nil>`)
		io.WriteString(proxy, request(0, "/again", ""))
		reads(t, r, `/again "" <nil>`)
		if n := p.ln.Open(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		h = p.sendAway(conn, proxy)
	}
	if len(p.conns) > 0 {
		t.Error("package http has made another one of it")
	}
	for len(states) > 0 {
		if s := <-states; s == http.StateClosed {
			t.Error("it was closed")
		}
	}
	unread(t, h, proxy, request(1, "/elsewhere", ""))
}

// TestAwayOther: what is not that connection, or comes back as another one, is a new one.
func TestAwayOther(t *testing.T) {
	for name, change := range map[string]func(*fdpass.Handoff){
		"unplaced": func(h *fdpass.Handoff) { h.Flags |= fdpass.FlagUnplaced },
		"details":  func(h *fdpass.Handoff) { h.Details = "others" },
		"proxied":  func(h *fdpass.Handoff) { h.Flags |= fdpass.FlagProxied },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
			_, proxy, r, h := p.leave()
			p.elsewhere(h, r)
			change(&h)
			io.WriteString(proxy, request(0, "/back", ""))
			p.handOff(h)
			reads(t, r, `/back "" <nil>`)
			fdtest.Receive(t, "new connection", p.conns)
		})
	}
	t.Run("another", func(t *testing.T) {
		p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
		_, proxy, _, h := p.leave()
		other := p.dial(0)
		io.WriteString(other, request(0, "/other", ""))
		reads(t, bufio.NewReader(other), `/other "" <nil>`)
		fdtest.Receive(t, "new connection", p.conns)
		unread(t, h, proxy, request(1, "/elsewhere", ""))
	})
}

// TestAwayBounded: it is waited for so long, and for so many.
func TestAwayBounded(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	p.ln.back.mu.Lock()
	p.ln.back.awayTimeout = time.Millisecond
	p.ln.back.mu.Unlock()
	proxy := p.dial(0)
	r := bufio.NewReader(proxy)
	io.WriteString(proxy, request(0, "/", ""))
	reads(t, r, `/ "" <nil>`)
	conn := fdtest.Receive(t, "connection", p.conns)
	for range 50 {
		h := p.sendAway(conn, proxy)
		p.elsewhere(h, r)
		io.WriteString(proxy, request(0, "/back", ""))
		p.handOff(h) // now, before, or while it gives up
		reads(t, r, `/back "" <nil>`)
		if len(p.conns) > 0 { // it was too late
			conn = <-p.conns
		}
	}
	h := p.sendAway(conn, proxy)
	fdtest.Eventually(t, "that it is not waited for", func() bool { return p.isAway() == 0 })
	unread(t, h, proxy, request(1, "/elsewhere", ""))

	back := &handBack{away: make(away), looked: make(map[*look]struct{}), awayTimeout: time.Hour}
	for i := range maxAway + 1 {
		l := &look{conn: new(Conn), returned: make(chan fdpass.Handoff, 1), cookie: uint64(i + 1)}
		if left := back.leave(l); left != (i < maxAway) {
			t.Fatalf("connection %d is waited for: %v", i, left)
		}
	}
}

// TestAwayDrain: a worker that drains waits for none.
func TestAwayDrain(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	_, proxy, _, h := p.leave()
	fdtest.Check(t, p.master.CloseWrite())
	if err := fdtest.Receive(t, "end of Serve", p.served); err != nil {
		t.Error(err)
	}
	p.served <- nil
	unread(t, h, proxy, request(1, "/elsewhere", ""))
}

// TestAwayClosed: the server closes it meanwhile, at any moment.
func TestAwayClosed(t *testing.T) {
	srv := &http.Server{Handler: http.HandlerFunc(answer)}
	p := newPool(t, srv)
	for i := range 50 {
		proxy := p.dial(0)
		r := bufio.NewReader(proxy)
		io.WriteString(proxy, request(0, "/", ""))
		reads(t, r, `/ "" <nil>`)
		conn := fdtest.Receive(t, "connection", p.conns)
		h := p.sendAway(conn, proxy)
		p.elsewhere(h, r)
		io.WriteString(proxy, request(0, "/back", ""))
		go func() {
			time.Sleep(time.Duration(i) * 10 * time.Microsecond)
			conn.Close()
		}()
		p.handOff(h)
		resp, err := http.ReadResponse(r, nil)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
		} else if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Error(err)
		}
		proxy.Close()
		fdtest.Eventually(t, "that it is closed", func() bool { return p.ln.Open() == 0 && p.isAway() == 0 })
		for len(p.conns) > 0 { // it may have come back too late, as a new one
			<-p.conns
		}
	}
}
