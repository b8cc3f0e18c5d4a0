package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// fate is what becomes of a client to whom something happens.
type fate string

const (
	untouched fate = "untouched" // it goes on, on its connection, with its worker
	moved     fate = "moved"     // no request of it fails; a further one has another connection, and another worker, or finds that nobody listens any more
	lost      fate = "lost"      // its connection ends, with what is under way; who is between two requests has moved
)

// protocols are the columns of the table: what clients do while something happens.
var protocols = []string{"request under way", "keep-alive POSTs", "polling", "WebSocket", "server-sent events", "TLS", "HTTP/2"}

// happening is a row of the table.
type happening struct {
	what  string
	fates [7]fate // of protocols
}

// eventTables are those of OPERATING.md, by the servers.
var eventTables = []struct {
	title  string
	worker string
	link   string
	routes []string
	rows   []happening
}{
	{"A Go program with package `worker`", "http", "", []string{"kernel", "master"}, []happening{
		{"upgrade", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"one slot more", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"one slot less, its own", [7]fate{untouched, moved, moved, untouched, untouched, moved, moved}},
		{"reload", [7]fate{untouched, moved, moved, untouched, untouched, moved, moved}},
		{"crash of its worker", [7]fate{lost, lost, lost, lost, lost, lost, lost}},
		{"stop", [7]fate{untouched, moved, moved, lost, lost, moved, moved}},
	}},
	{"A Go program that knows nothing of handfast, `--worker-link any`", "careless", "any", []string{"kernel"}, []happening{
		{"upgrade", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"one slot more", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"one slot less, its own", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"reload", [7]fate{untouched, untouched, untouched, untouched, untouched, untouched, untouched}},
		{"crash of its worker", [7]fate{lost, lost, lost, lost, lost, lost, lost}},
		{"stop", [7]fate{untouched, lost, lost, lost, lost, lost, lost}},
	}},
}

// markdown is the table as OPERATING.md has it.
func (h happening) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |", h.what)
	for _, f := range h.fates {
		fmt.Fprintf(&b, " %s |", f)
	}
	return b.String()
}

// TestEventTables: OPERATING.md has the tables that TestEvents tries.
func TestEventTables(t *testing.T) {
	var want strings.Builder
	for _, table := range eventTables {
		fmt.Fprintf(&want, "%s:\n\n| | %s |\n|---|%s\n", table.title, strings.Join(protocols, " | "), strings.Repeat("---|", len(protocols)))
		for _, row := range table.rows {
			fmt.Fprintln(&want, row.markdown())
		}
		fmt.Fprintln(&want)
	}
	if !strings.Contains(pages(t)["cmd/handfast/OPERATING.md"], want.String()) {
		t.Errorf("cmd/handfast/OPERATING.md does not have\n\n%s", &want)
	}
}

// guest is a client that does something while something happens.
type guest interface {
	// fate returns what has become of it, after it has happened, and why, if it is lost. Of what the server does in its own time, such as closing a connection, it
	// waits for what is wanted.
	fate(want fate) (fate, error)
	close()
}

// TestEvents: clients of all protocols are there at the same time, and each event does to each of them what the table says.
func TestEvents(t *testing.T) {
	t.Parallel()
	for _, table := range eventTables {
		for _, route := range table.routes {
			for _, secure := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/tls=%v", table.worker, route, secure), func(t *testing.T) {
					t.Parallel()
					b := start(t, 2, options{
						variant: variant{route, table.link}, worker: []string{table.worker}, lean: true,
						flags:  []string{"--stop-timeout", "2s"},
						change: func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, fmt.Sprintf("HANDFAST_TEST_TLS=%d", btoi(secure))) },
					})
					for _, row := range table.rows {
						b.happens(row, secure)
					}
					if status := b.exit(); status != exitOK {
						t.Errorf("exit status %d", status)
					}
				})
			}
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// happens has it happen to clients of all protocols, of one address: that of the third of three slots.
func (b *instance) happens(row happening, secure bool) {
	b.t.Helper()
	from := sourceIn(2, 3, 0)
	guests := make([]guest, len(protocols))
	if secure {
		guests[5] = b.repeats(from, loop{protocol: "HTTP/1.1", secure: true, path: "/sleep/20ms"})
		guests[6] = b.repeats(from, loop{protocol: "HTTP/2.0", secure: true, path: "/sleep/20ms"})
	} else {
		request := "/events/1s"
		if row.fates[0] == lost {
			request = "/events/1m" // still under way when that happens, however busy the machine is
		}
		guests[0] = b.streams(from, request)
		guests[1] = b.repeats(from, loop{protocol: "HTTP/1.1", post: true, path: "/"})
		guests[2] = b.repeats(from, loop{protocol: "HTTP/1.1", path: "/sleep/100ms"})
		guests[3] = talk{b, b.socketFor(from)}
		if err := exchange(b.t.Context(), guests[3].(talk).conn, "hello"); err != nil {
			b.t.Fatal(err)
		}
		guests[4] = b.streams(from, "/events")
	}
	switch row.what {
	case "upgrade":
		b.upgrades(1)
	case "one slot more":
		b.tell("scale", "3")
		b.awaitStatus("three slots", func(s *master.Status) bool { return s.Ready && len(s.Slots) == 3 && s.Slots[2].InUse })
	case "one slot less, its own":
		b.tell("scale", "2")
	case "reload":
		b.tell("reload")
	case "crash of its worker":
		for slot := range 2 {
			kill(b.t, b.worker(slot)) // one of them is its own
		}
	case "stop":
		b.signal(unix.SIGTERM)
	default:
		b.t.Fatal(row.what)
	}
	for i, g := range guests {
		if g == nil {
			continue
		}
		want := row.fates[i]
		got, err := g.fate(want)
		if _, loops := g.(*repeating); got != want && !(want == lost && got == moved && loops) {
			b.t.Errorf("%s, %s: %s (%v), want %s", row.what, protocols[i], got, err, want)
		}
		g.close()
	}
}

// talk is a client with a WebSocket.
type talk struct {
	b    *instance
	conn *websocket.Conn
}

func (k talk) fate(want fate) (fate, error) {
	if want == lost {
		if _, _, err := k.conn.Read(k.b.t.Context()); err != nil {
			return lost, err
		}
	}
	if err := exchange(k.b.t.Context(), k.conn, "still there"); err != nil {
		return lost, err
	}
	return untouched, nil
}

func (k talk) close() { k.conn.CloseNow() }

// streaming is a client that reads an answer which comes little by little.
type streaming struct {
	b     *instance
	conn  net.Conn
	body  *bufio.Reader
	finds bool // the end
}

// streams begins to read one.
func (b *instance) streams(from netip.Addr, path string) *streaming {
	b.t.Helper()
	conn, err := b.dial(from)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := request(conn, path); err != nil {
		b.t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		b.t.Fatal(response, err)
	}
	s := &streaming{b: b, conn: conn, body: bufio.NewReader(response.Body), finds: path != "/events"}
	if _, err := s.body.ReadString('\n'); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (s *streaming) fate(want fate) (fate, error) {
	for enough := time.Now().Add(50 * time.Millisecond); ; {
		line, err := s.body.ReadString('\n')
		switch {
		case err != nil:
			return lost, err
		case line == "data: end\n":
			return untouched, nil
		case !s.finds && want == untouched && time.Now().After(enough):
			return untouched, nil
		}
	}
}

func (s *streaming) close() { s.conn.Close() }

// loop is what a client asks for again and again, over one connection as long as it lasts.
type loop struct {
	protocol     string
	path         string
	post, secure bool
}

// repeating is such a client.
type repeating struct {
	b     *instance
	stop  context.CancelFunc
	ended chan struct{}

	mu       sync.Mutex
	first    int   // worker that has answered
	latest   int   // likewise
	answered int   // requests
	err      error // of the first that was not
}

// repeats begins to ask.
func (b *instance) repeats(from netip.Addr, l loop) *repeating {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	r := &repeating{b: b, stop: cancel, ended: make(chan struct{})}
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return b.dial(from) },
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: l.protocol == "HTTP/2.0",
	}
	go func() {
		defer close(r.ended)
		defer transport.CloseIdleConnections()
		for ctx.Err() == nil {
			pid, err := l.ask(ctx, transport, b.addr)
			if ctx.Err() == nil {
				r.note(pid, err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	if !eventually(func() bool { _, _, n, err := r.seen(); return n > 0 || err != nil }) {
		b.t.Fatal("no answer")
	}
	if _, _, _, err := r.seen(); err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (r *repeating) note(pid int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = cmp.Or(r.err, err)
		return
	}
	if r.answered++; r.answered == 1 {
		r.first = pid
	}
	r.latest = pid
}

func (r *repeating) seen() (first, latest, answered int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first, r.latest, r.answered, r.err
}

func (r *repeating) fate(want fate) (fate, error) {
	_, _, before, _ := r.seen()
	eventually(func() bool {
		first, latest, n, err := r.seen()
		return err != nil || first != latest || want == untouched && n >= before+5
	})
	first, latest, _, err := r.seen()
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return moved, nil
	case err != nil:
		return lost, err
	case first != latest:
		return moved, nil
	}
	return untouched, nil
}

func (r *repeating) close() { r.stop(); <-r.ended }

// ask makes one request.
func (l loop) ask(ctx context.Context, transport *http.Transport, addr string) (pid int, err error) {
	scheme, method, body := "http", http.MethodGet, io.Reader(nil)
	if l.secure {
		scheme = "https"
	}
	if l.post {
		method, body = http.MethodPost, bytes.NewReader([]byte("text"))
	}
	request, err := http.NewRequestWithContext(ctx, method, scheme+"://"+addr+l.path, body)
	if err != nil {
		return 0, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.Proto != l.protocol {
		return 0, fmt.Errorf("it is %s", response.Proto)
	}
	a, err := readAnswer(response)
	if err == nil && a.status != http.StatusOK {
		err = fmt.Errorf("status %d", a.status)
	}
	return a.pid, err
}
