package worker

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// passages are those of a pool.
type passages struct {
	*pool
	entrance *fdpass.Conn        // of slot 0, the worker's
	fd       int                 // its descriptor
	passed   chan fdpass.Handoff // by that of slot 1
	exit     int                 // as the master keeps it
	end      func()              // nobody passes to slot 1 any more
}

// withPassages gives a pool's worker its own passage and that of slot 1.
func withPassages(t *testing.T, p *pool) *passages {
	t.Helper()
	g := &passages{pool: p, passed: make(chan fdpass.Handoff, 1000)}
	in, out, err := fdpass.NewPassage()
	fdtest.Check(t, err)
	otherIn, otherOut, err := fdpass.NewPassage()
	fdtest.Check(t, err)
	fdtest.Check(t, p.master.TrySend(fdpass.TypePass, []fdpass.Handoff{fdpass.PassageEnd(0, out), fdpass.PassageEnd(1, otherIn), fdpass.PassageEnd(fdpass.MaxPassages, in)}))
	fdtest.Check(t, p.master.TrySend(fdpass.TypePass, []fdpass.Handoff{fdpass.PassageEnd(0, in)})) // of which it has one
	g.exit = out
	g.end = func() { unix.Shutdown(otherIn, unix.SHUT_WR) }
	g.entrance, err = fdpass.NewEntrance(in)
	fdtest.Check(t, err)
	g.fd = in
	exit, err := fdpass.NewExit(otherOut)
	fdtest.Check(t, err)
	received := make(chan struct{})
	go func() {
		defer close(received)
		var m fdpass.Message
		for exit.Receive(&m) == nil {
			for _, h := range m.Handoffs {
				g.passed <- h
			}
		}
	}()
	t.Cleanup(func() {
		g.end()
		unix.Close(otherIn)
		unix.Close(out)
		fdtest.Receive(t, "end of the passage", received)
		exit.Close()
		g.entrance.Close()
		for len(g.passed) > 0 {
			unix.Close((<-g.passed).FD)
		}
	})
	fdtest.Eventually(t, "the passages", func() bool { return p.ln.back.entrances[1].Load() != nil })
	return g
}

// pass passes a connection to the worker, and closes it here.
func (g *passages) pass(h fdpass.Handoff) {
	g.t.Helper()
	defer unix.Close(h.FD)
	fdtest.Check(g.t, g.entrance.TrySend(fdpass.TypePass, []fdpass.Handoff{h}))
}

// comeAndGo has the worker pass a connection to slot 1, as it does when it was away before.
func (g *passages) comeAndGo() (conn *Conn, proxy *net.TCPConn, r *bufio.Reader, h fdpass.Handoff) {
	g.t.Helper()
	conn, proxy, r, h = g.leave() // for the first time to the master
	g.elsewhere(h, r)
	io.WriteString(proxy, request(0, "/back", ""))
	g.handOff(h)
	reads(g.t, r, `/back "" <nil>`)
	return conn, proxy, r, g.passAway(conn, proxy)
}

// passAway has the worker pass a connection to slot 1.
func (g *passages) passAway(conn *Conn, proxy net.Conn) fdpass.Handoff {
	g.t.Helper()
	fdtest.Eventually(g.t, "that the next request is waited for", conn.look.waiting.Load)
	io.WriteString(proxy, request(1, "/elsewhere", ""))
	h := fdtest.Receive(g.t, "what is passed", g.passed)
	fdtest.Eventually(g.t, "that it is away", func() bool { return g.ln.Open() == 0 && g.isAway() == 1 })
	return h
}

// TestPass: a connection that comes and goes does so without the master, and nothing of it is lost.
func TestPass(t *testing.T) {
	g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(answer)}))
	conn, proxy, r, h := g.comeAndGo()
	for i := range 5 {
		g.elsewhere(h, r)
		if i%2 == 0 {
			fdtest.Check(t, unix.SetNonblock(h.FD, false)) // as a program may do
		}
		io.WriteString(proxy, request(0, "/back", "Content-Length: 4\r\n\r\nbody"))
		g.pass(h)
		reads(t, r, `/back "body" <nil>`)
		io.WriteString(proxy, request(0, "/again", ""))
		reads(t, r, `/again "" <nil>`)
		if n := g.ln.Open(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		h = g.passAway(conn, proxy)
	}
	if _, passed := g.ln.back.reported(); passed != 5 || len(g.conns) > 0 || len(g.back) > 0 {
		t.Errorf("%d were passed, %d are new, %d came to the master", passed, len(g.conns), len(g.back))
	}
	unread(t, h, proxy, request(1, "/elsewhere", ""))
}

// TestPassNoFiles: a worker that has no file descriptors for its exit takes nothing more, since nobody would receive what is passed to it. Without an
// entrance it hands back.
func TestPassNoFiles(t *testing.T) {
	in, out, err := fdpass.NewPassage()
	fdtest.Check(t, err)
	h := new(handBack)
	fdtest.WithoutFiles(t, func() {
		err = h.setPassages(&fdpass.Message{Handoffs: []fdpass.Handoff{fdpass.PassageEnd(0, out)}})
	})
	if err == nil || errors.Is(err, unix.EMFILE) || ended(err) {
		t.Errorf("without an exit: %v", err)
	}
	if err := h.setPassages(&fdpass.Message{Lost: 1}); err == nil {
		t.Error("the exit may have been lost, and nobody says so")
	}
	unix.Close(in)
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	withPassages(t, p)
	fdtest.Eventually(t, "the exit", func() bool { return p.ln.back.entrances[1].Load() != nil })
	if err := p.ln.back.setPassages(&fdpass.Message{Lost: 1}); err != nil {
		t.Errorf("without an entrance: %v", err)
	}
}

// TestPassOnce: what was passed here and belongs elsewhere goes to the master, however often.
func TestPassOnce(t *testing.T) {
	g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(answer)}))
	_, proxy, r, h := g.comeAndGo()
	for range 3 {
		g.pass(h) // with the same request
		h = fdtest.Receive(t, "what is handed back", g.pool.back)
		fdtest.Eventually(t, "that it is away", func() bool { return g.ln.Open() == 0 && g.isAway() == 1 })
	}
	g.elsewhere(h, r)
	io.WriteString(proxy, request(0, "/back", ""))
	g.pass(h)
	reads(t, r, `/back "" <nil>`)
	if len(g.passed) > 0 {
		t.Error("it was passed as well")
	}
}

// TestPassFails: a connection that cannot be passed is handed back.
func TestPassFails(t *testing.T) {
	for name, spoil := range map[string]func(*passages){
		"ended": func(g *passages) { g.end() },
		"scaled down": func(g *passages) {
			fdtest.Check(t, g.master.TrySendSlots(1, false))
			fdtest.Check(t, g.master.TrySendSlots(2, false))
			fdtest.Eventually(t, "that", func() bool { return g.ln.back.entrances[1].Load() == nil })
		},
		"replaced": func(g *passages) {
			fdtest.Check(t, g.master.TrySendSlots(2, true))
			fdtest.Eventually(t, "that", g.ln.back.replaced.Load)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(answer)}))
			conn, proxy, r, h := g.comeAndGo()
			g.elsewhere(h, r)
			io.WriteString(proxy, request(0, "/back", ""))
			g.pass(h)
			reads(t, r, `/back "" <nil>`)
			spoil(g)
			unread(t, g.sendAway(conn, proxy), proxy, request(1, "/elsewhere", ""))
		})
	}
}

// TestPassedHostile: another worker sends whatever it likes. Nothing of that is served, nobody waits for it, and what may be a connection
// comes to the master.
func TestPassedHostile(t *testing.T) {
	g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(answer)}))
	_, proxy, r, h := g.comeAndGo()
	g.elsewhere(h, r)
	send := func(text []byte, fds ...int) {
		fdtest.Check(t, unix.Sendmsg(g.fd, text, unix.UnixRights(fds...), nil, 0))
	}
	var pipe [2]int
	fdtest.Check(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	lingering, foreign := fdtest.Lingering(t), fdtest.Lingering(t)
	many := make([]int, 253)
	for i := range many {
		many[i] = pipe[0]
	}
	send([]byte("hello"), lingering)
	send([]byte("hello"), many...)
	fdtest.Check(t, g.entrance.TrySend(fdpass.TypePing, nil))
	fdtest.Check(t, g.entrance.TrySend(fdpass.TypePass, nil))
	fdtest.Check(t, g.entrance.TrySend(fdpass.TypeHandoff, []fdpass.Handoff{{FD: foreign}}))
	fdtest.Check(t, g.entrance.TrySend(fdpass.TypePass, []fdpass.Handoff{{FD: pipe[0]}, {FD: foreign}, {FD: g.fd}}))
	other := h
	other.Details = "others"
	fdtest.Check(t, g.entrance.TrySend(fdpass.TypePass, []fdpass.Handoff{other}))
	for _, fd := range []int{lingering, foreign, pipe[0], pipe[1]} {
		go fdpass.CloseConnections(fd) // the worker has the last ones
	}
	for _, want := range []int{foreign, g.fd, h.FD} {
		got := fdtest.Receive(t, "what comes to the master", g.pool.back)
		if want == h.FD && got.Details != "others" {
			t.Errorf("it came as %+v", got)
		}
		go fdpass.CloseConnections(got.FD)
	}
	io.WriteString(proxy, request(0, "/back", ""))
	g.pass(h)
	reads(t, r, `/back "" <nil>`)
	if len(g.conns) > 0 || g.ln.Open() != 1 {
		t.Errorf("%d new connections, %d are open", len(g.conns), g.ln.Open())
	}
}

// TestPassedDrain: a worker that drains sends to the master what is passed to it, and ends with its last connection although others could pass more.
func TestPassedDrain(t *testing.T) {
	wait := newGate()
	g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/busy" {
			wait.pass()
		}
		answer(w, r)
	})}))
	_, proxy, r, h := g.comeAndGo()
	g.elsewhere(h, r)
	busy := g.dial(0)
	io.WriteString(busy, request(0, "/busy", ""))
	fdtest.Receive(t, "the handler", wait.has)
	fdtest.Check(t, g.master.CloseWrite())
	fdtest.Eventually(t, "that it drains", g.ln.back.draining.Load)
	io.WriteString(proxy, request(0, "/back", ""))
	g.pass(h)
	unread(t, fdtest.Receive(t, "what comes to the master", g.pool.back), proxy, request(0, "/back", ""))
	wait.open <- struct{}{}
	reads(t, bufio.NewReader(busy), `/busy "" <nil>`)
	unix.Close(fdtest.Receive(t, "what is handed back", g.pool.back).FD)
	if err := fdtest.Receive(t, "end of Serve", g.served); err != nil {
		t.Error(err)
	}
	g.served <- nil
}

// TestPassedAtTheEnd: what is passed while a worker ends is received and goes on, or stays in the passage for the master.
func TestPassedAtTheEnd(t *testing.T) {
	for i := range 10 {
		g := withPassages(t, newPool(t, &http.Server{Handler: http.HandlerFunc(answer)}))
		_, proxy, r, h := g.comeAndGo()
		g.elsewhere(h, r)
		io.WriteString(proxy, request(0, "/back", ""))
		go func() {
			time.Sleep(time.Duration(i) * 15 * time.Microsecond)
			g.master.CloseWrite()
		}()
		g.pass(h)
		if err := fdtest.Receive(t, "end of Serve", g.served); err != nil {
			t.Error(err)
		}
		g.served <- nil
		proxy.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := proxy.Read(make([]byte, 1)); n == 0 && err == io.EOF {
			t.Error("nobody has it")
		}
	}
}
