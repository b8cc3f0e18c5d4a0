package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
	"github.com/handfast/handfast/worker/workertest"
)

// site is an HTTP server on handed-off connections, and a client of it.
type site struct {
	*workertest.Master
	t       *testing.T
	ln      *worker.Listener
	client  *http.Client
	signals chan os.Signal
	ended   chan error // what Serve returned
}

func start(t *testing.T, srv *http.Server) *site {
	t.Helper()
	m := workertest.NewMaster(t)
	s := &site{Master: m, t: t, ln: m.Listen(), signals: make(chan os.Signal, 2), ended: make(chan error, 1)}
	s.run(srv, func(context.Context, string, string) (net.Conn, error) { return m.Dial(), nil })
	m.WaitReady()
	return s
}

// run serves until the test ends.
func (s *site) run(srv *http.Server, dial func(context.Context, string, string) (net.Conn, error)) {
	transport := &http.Transport{DialContext: dial, ForceAttemptHTTP2: true}
	s.client = &http.Client{Transport: transport}
	ended := make(chan struct{})
	go func() {
		s.ended <- worker.ServeOn(srv, s.ln, s.signals)
		close(ended)
	}()
	s.t.Cleanup(func() {
		transport.CloseIdleConnections()
		close(s.signals) // as many as are wanted
		fdtest.Receive(s.t, "end of Serve", ended)
	})
}

// get wants this answer.
func (s *site) get(path, want string) *http.Response {
	s.t.Helper()
	res, body := s.fetch(path)
	if string(body) != want {
		s.t.Fatalf("GET %s: %s %q, want %q", path, res.Status, body, want)
	}
	return res
}

func (s *site) fetch(path string) (*http.Response, []byte) {
	s.t.Helper()
	res, err := s.client.Get("http://site" + path)
	fdtest.Check(s.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	fdtest.Check(s.t, err)
	return res, body
}

// served wants Serve to end, with this error.
func (s *site) served(want error) {
	s.t.Helper()
	if err := fdtest.Receive(s.t, "end of Serve", s.ended); !errors.Is(err, want) {
		s.t.Fatalf("Serve returned %v, want %v", err, want)
	}
}

// serving wants Serve not to have ended.
func (s *site) serving() {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.t.Fatalf("Serve has ended with %v", err)
	default:
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.URL.Path) }

// waiting is a handler that says when it has a request, and answers on demand.
type waiting struct{ has, answer chan struct{} }

func newWaiting() waiting { return waiting{make(chan struct{}), make(chan struct{})} }

func (h waiting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.has <- struct{}{}
	select {
	case <-h.answer:
		hello(w, r)
	case <-r.Context().Done():
	}
}

// pending makes a request, and returns when its handler has it. What comes is the
// answer, or what the client says of it.
func (s *site) pending(h waiting, path string) <-chan string {
	s.t.Helper()
	answer := make(chan string, 1)
	go func() {
		res, err := s.client.Get("http://site" + path)
		if err != nil {
			answer <- "error"
			return
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		answer <- fmt.Sprintf("%s close=%v", body, res.Close)
	}()
	fdtest.Receive(s.t, "request", h.has)
	return answer
}

func TestServe(t *testing.T) {
	fdtest.NoLeaks(t)
	data := pattern(8 << 20)
	file := sourceFile(t, data)
	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.HandleFunc("/addr", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) { w.Write(data) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, file)
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	s := start(t, &http.Server{Handler: mux})
	s.get("/a", "hello /a")
	s.get("/b", "hello /b")
	for _, path := range []string{"/large", "/file"} {
		if _, body := s.fetch(path); !bytes.Equal(body, data) {
			t.Errorf("%s: %d other bytes", path, len(body))
		}
	}
	req, _ := http.NewRequest("GET", "http://site/file", nil)
	req.Header.Set("Range", "bytes=1000000-1999999")
	res, err := s.client.Do(req)
	fdtest.Check(t, err)
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(body, data[1000000:2000000]) {
		t.Errorf("range: %s, %d bytes, %v", res.Status, len(body), err)
	}
	res, err = s.client.Post("http://site/echo", "", bytes.NewReader(data))
	fdtest.Check(t, err)
	body, err = io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !bytes.Equal(body, data) {
		t.Errorf("echo: %d bytes, %v", len(body), err)
	}
	s.Drain()
	s.served(nil)
}

// An idle connection is closed at a drain, or else Serve would wait for it.
func TestServeDrainIdle(t *testing.T) {
	fdtest.NoLeaks(t)
	s := start(t, &http.Server{Handler: http.HandlerFunc(hello)})
	client := closing(t, s.Dial())
	write(t, client, "GET /x HTTP/1.1\r\nHost: site\r\n\r\n")
	r := bufio.NewReader(client)
	res, err := http.ReadResponse(r, nil)
	fdtest.Check(t, err)
	io.Copy(io.Discard, res.Body)
	s.Drain()
	readEOF(t, client)
	s.served(nil)
}

// A request in flight, and one of which only a part has arrived, are answered.
func TestServeDrainInFlight(t *testing.T) {
	fdtest.NoLeaks(t)
	h := newWaiting()
	s := start(t, &http.Server{Handler: h})
	answer := s.pending(h, "/x")
	partial := closing(t, s.Dial())
	write(t, partial, "GET /y HTTP/1.1\r\nHost: site\r\n")
	s.Drain()
	fdtest.Receive(t, "drain", s.ln.Draining())
	write(t, partial, "\r\n")
	fdtest.Receive(t, "request", h.has)
	s.serving()
	close(h.answer)
	if got := fdtest.Receive(t, "answer", answer); !strings.HasPrefix(got, "hello /x") {
		t.Error(got)
	}
	body, err := io.ReadAll(partial)
	if err != nil || !strings.HasPrefix(string(body), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(body), "hello /y") || !strings.Contains(string(body), "\r\nConnection: close\r\n") {
		t.Errorf("%q, %v", body, err)
	}
	s.served(nil)
}

func TestServeWebSocketSurvivesDrain(t *testing.T) {
	fdtest.NoLeaks(t)
	shutdown := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for err == nil {
			var msg []byte
			if _, msg, err = c.Read(r.Context()); err == nil {
				err = c.Write(r.Context(), websocket.MessageText, msg)
			}
		}
	})}
	srv.RegisterOnShutdown(func() { close(shutdown) })
	s := start(t, srv)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "http://site/", &websocket.DialOptions{HTTPClient: s.client})
	fdtest.Check(t, err)
	defer ws.CloseNow()
	echo := func(text string) {
		t.Helper()
		fdtest.Check(t, ws.Write(ctx, websocket.MessageText, []byte(text)))
		if _, got, err := ws.Read(ctx); string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	echo("before")
	s.Drain()
	fdtest.Receive(t, "shutdown hook", shutdown)
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
		echo("after")
		s.serving()
	}
	fdtest.Check(t, ws.Close(websocket.StatusNormalClosure, ""))
	s.served(nil)
}

// A signal begins a drain of the worker's own: the master hears of it.
func TestServeSignal(t *testing.T) {
	fdtest.NoLeaks(t)
	h := newWaiting()
	s := start(t, &http.Server{Handler: h})
	answer := s.pending(h, "/x")
	s.signals <- unix.SIGTERM
	if m := s.Receive(); m.Type != fdpass.TypeLeave {
		t.Errorf("the worker said %s", m.Type)
	}
	s.serving()
	close(h.answer)
	if got := fdtest.Receive(t, "answer", answer); !strings.HasPrefix(got, "hello /x") {
		t.Error(got)
	}
	s.served(nil)
}

func TestServeSecondSignal(t *testing.T) {
	fdtest.NoLeaks(t)
	h := newWaiting()
	s := start(t, &http.Server{Handler: h})
	answer := s.pending(h, "/x")
	s.signals <- unix.SIGTERM
	fdtest.Receive(t, "drain", s.ln.Draining())
	s.serving()
	s.signals <- unix.SIGTERM
	s.served(nil)
	if got := fdtest.Receive(t, "end of the connection", answer); got != "error" {
		t.Error(got)
	}
}

// After a failure, too, what is in flight is finished.
func TestServeMalformed(t *testing.T) {
	fdtest.NoLeaks(t)
	fd, master, ln := rawMailbox(t)
	h := newWaiting()
	s := &site{t: t, ln: ln, signals: make(chan os.Signal, 2), ended: make(chan error, 1)}
	s.run(&http.Server{Handler: h}, func(context.Context, string, string) (net.Conn, error) {
		return handOff(t, master, fdpass.TypeHandoff, 1)[0], nil
	})
	answer := s.pending(h, "/x")
	fdtest.Check(t, unix.Sendmsg(fd, []byte("nonsense"), nil, nil, 0))
	fdtest.Receive(t, "drain", ln.Draining())
	s.serving()
	close(h.answer)
	if got := fdtest.Receive(t, "answer", answer); !strings.HasPrefix(got, "hello /x") {
		t.Error(got)
	}
	s.served(fdpass.ErrMalformed)
}

// The program may shut its server down by itself: Serve does then as package http's
// does, and returns at once.
func TestServeShutdown(t *testing.T) {
	fdtest.NoLeaks(t)
	h := newWaiting()
	srv := &http.Server{Handler: h}
	s := start(t, srv)
	answer := s.pending(h, "/x")
	shut := make(chan error, 1)
	go func() { shut <- srv.Shutdown(t.Context()) }()
	s.served(http.ErrServerClosed)
	close(h.answer)
	if got := fdtest.Receive(t, "answer", answer); !strings.HasPrefix(got, "hello /x") {
		t.Error(got)
	}
	fdtest.Check(t, fdtest.Receive(t, "shutdown", shut))
}

func TestServeTLS(t *testing.T) {
	fdtest.NoLeaks(t)
	unused := httptest.NewTLSServer(nil) // has a certificate
	defer unused.Close()
	s := start(t, &http.Server{
		Handler:   http.HandlerFunc(hello),
		TLSConfig: &tls.Config{Certificates: unused.TLS.Certificates},
	})
	roots := x509.NewCertPool()
	roots.AddCert(unused.Certificate())
	s.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots}
	res, err := s.client.Get("https://example.com/x")
	fdtest.Check(t, err)
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "hello /x" || res.ProtoMajor != 2 {
		t.Errorf("%s %q, %v", res.Proto, body, err)
	}
	s.Drain()
	s.served(nil)
}

// serveChild makes the test binary a worker.
const serveChild = "serve"

func serveInChild() int {
	err := worker.Serve(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		self, ok := worker.Self()
		fmt.Fprintf(w, "%+v %v", self, ok)
	})})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A real process, as a master starts it, and a real SIGTERM.
func TestServeInProcess(t *testing.T) {
	fdtest.NoLeaks(t)
	master, file, err := fdpass.Pair()
	fdtest.Check(t, err)
	closing(t, master)
	cmd := child(t, []*os.File{file}, childEnv+"="+serveChild,
		"HANDFAST_FD=3", "HANDFAST_SLOT=1", "HANDFAST_SLOTS=2", "HANDFAST_GENERATION=3")
	cmd.Stderr = t.Output()
	fdtest.Check(t, cmd.Start())
	fdtest.Check(t, file.Close())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })

	says(t, master, fdpass.TypeReady)
	client := handOff(t, master, fdpass.TypeHandoff, 1)[0]
	write(t, client, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(client)
	if want := "{Slot:1 Slots:2 Generation:3} true"; err != nil || !strings.HasSuffix(string(answer), want) {
		t.Errorf("%q, %v; want %s", answer, err, want)
	}
	idle := handOff(t, master, fdpass.TypeHandoff, 1)[0]
	fdtest.Check(t, cmd.Process.Signal(unix.SIGTERM))
	says(t, master, fdpass.TypeLeave)
	idle.Close()
	fdtest.Check(t, fdtest.Receive(t, "exit", ended))
}
