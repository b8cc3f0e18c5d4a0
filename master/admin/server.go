package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

// Bounds of what clients may do.
const (
	maxConnections = 32
	maxHeader      = 16 << 10
	maxBody        = 4 << 10
	requestTimeout = 5 * time.Second // for a request to arrive
	answerTimeout  = 10 * time.Second
	pingTimeout    = 5 * time.Second  // for the supervisor to show that it is alive
	upgradeTimeout = 20 * time.Second // for the next program to be tried
	idleTimeout    = time.Minute
	closeTimeout   = time.Second // for the last answers
)

// Master is what is asked: a *master.Master.
type Master interface {
	Status() master.Status
	NotReady() string
	Place(client string) (master.Placement, error)
	Snapshot() (*supervisor.Snapshot, <-chan struct{})
	StartReload() (generation int, result <-chan error, err error)
	StartReplace(slot int) (result <-chan error, err error)
	DrainLingering(asked func(supervisor.Seat) bool) (int, error)
	Scale(slots int) error
	Stop()
	Ping(context.Context) error // returns when its supervisor has been seen alive, or ctx ends
}

// Server answers for a master. One goroutine runs for each connection, and package http's with it.
type Server struct {
	master Master
	log    hclog.Logger
	mux    *http.ServeMux

	by      func(ctx context.Context, before func()) error // nil: no upgrades
	metrics http.Handler                                   // nil: none
}

// NewServer makes a server; Serve answers.
func NewServer(m Master, log hclog.Logger) *Server {
	s := &Server{master: m, log: log, mux: http.NewServeMux()}
	for _, r := range Routes() {
		s.mux.HandleFunc(r.Pattern(), r.to(s))
	}
	return s
}

// UpgradeBy lets clients ask for another program in place of this one. by returns only if that fails,
// and calls before when the next one has been tried. It is called before Serve.
func (s *Server) UpgradeBy(by func(ctx context.Context, before func()) error) { s.by = by }

// MeasureBy has h answer what asks for metrics. It must only read: whoever can connect may ask. It is called before Serve.
func (s *Server) MeasureBy(h http.Handler) { s.metrics = h }

func (s *Server) measure(w http.ResponseWriter, r *http.Request) {
	if s.metrics == nil {
		http.NotFound(w, r)
		return
	}
	s.metrics.ServeHTTP(w, r)
}

// Upgrading is the answer to an upgrade that is about to be made: the connection ends with it, and
// the status's count then tells that it was.
type Upgrading struct {
	Count int    `json:"count"` // that the next program's status has
	From  string `json:"from"`  // version of this one
}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if s.by == nil {
		http.NotFound(w, r)
		return
	}
	if !read(w, r, &struct{}{}) {
		return
	}
	control := http.NewResponseController(w)
	control.SetWriteDeadline(time.Now().Add(upgradeTimeout))
	answered := false
	// Not the request's context: a client may go away when it has the answer.
	err := s.by(context.WithoutCancel(r.Context()), func() {
		answered = true
		now := s.master.Status()
		answer(w, http.StatusOK, Upgrading{now.Upgrade.Count + 1, now.Version})
		control.Flush()
	})
	if err != nil && !answered { // else the status tells
		fail(w, statusOf(err), err)
	}
}

// Serve answers on a listener, which it takes ownership of, until ctx ends; then clients that
// wait for the end get it. It may be called for several at the same time.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           secured(s.mux, ln.Addr()),
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	trackRequests(srv)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		last, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if srv.Shutdown(last) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(newBoundedListener(ln, maxConnections))
	if stop() { // it was not ctx that ended it
		srv.Close()
		return fmt.Errorf("admin: %w", err)
	}
	<-ended
	return nil
}

// secured keeps browsers from doing what others want.
func secured(h http.Handler, addr net.Addr) http.Handler {
	named := []string{"localhost"}
	if name, err := os.Hostname(); err == nil {
		named = append(named, name)
	}
	local := addr.Network() == "unix" // no browser comes this way
	commands := local || isLoopback(addr)
	h = http.NewCrossOriginProtection().Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		if !local && !isProbe(r) && !isNamed(r.Host, named) {
			fail(w, http.StatusMisdirectedRequest, fmt.Errorf("this is no host called %q; use its IP address, localhost, or the machine's own name", r.Host))
			return
		}
		if !commands && r.Method == http.MethodPost {
			fail(w, http.StatusForbidden, errors.New("commands are taken on the Unix socket, and on an address of the machine itself, such as 127.0.0.1"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isLoopback tells whether only this machine can connect to an address.
func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// isProbe tells whether a request asks no more than a load balancer's health check. Those name what host they like, or
// none (HAProxy's and keepalived's, by HTTP/1.0), and learn a word.
func isProbe(r *http.Request) bool { return r.URL.Path == "/healthz" || r.URL.Path == "/readyz" }

// isNamed tells whether a Host header is one of these names or an IP address. Another one may be
// that of a page whose owner lets it point here (DNS rebinding).
func isNamed(host string, names []string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, host) })
}

// command is a request that changes something. Its body must be declared as JSON, which a
// form cannot do, nor a script of another origin without having asked before.
func command(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			fail(w, http.StatusUnsupportedMediaType, errors.New("want Content-Type: application/json"))
			return
		}
		do(w, r)
	}
}

// Failure is the answer to what cannot be done.
type Failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, status int, err error) { answer(w, status, Failure{err.Error()}) }

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(v)
}

// read reads the body of a request, which may be empty.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(v)
	if err == nil && decoder.More() {
		err = errors.New("more than one value")
	}
	if err != nil && err != io.EOF {
		fail(w, http.StatusBadRequest, fmt.Errorf("the request's body: %w", err))
		return false
	}
	return true
}

// statusOf is the HTTP status of an error of the master's.
func statusOf(err error) int {
	switch {
	case errors.Is(err, supervisor.ErrStopped):
		return http.StatusServiceUnavailable
	case errors.Is(err, supervisor.ErrNoSlot):
		return http.StatusNotFound
	case errors.Is(err, supervisor.ErrEmpty), errors.Is(err, supervisor.ErrReloading), errors.Is(err, supervisor.ErrUpgradeReload):
		return http.StatusConflict
	default:
		return http.StatusBadRequest
	}
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.master.Status())
}

// healthy tells whether the master does anything at all.
func (s *Server) healthy(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), pingTimeout)
	defer cancel()
	if err := s.master.Ping(ctx); err != nil {
		http.Error(w, "the supervisor does not answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if why := s.master.NotReady(); why != "" {
		http.Error(w, "not ready: "+why, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (s *Server) slot(w http.ResponseWriter, r *http.Request) {
	client := r.URL.Query().Get("client")
	if client == "" {
		fail(w, http.StatusBadRequest, errors.New("want ?client=ADDRESS"))
		return
	}
	placement, err := s.master.Place(client)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	answer(w, http.StatusOK, placement)
}

// Scale is what a change of the number of slots asks for.
type Scale struct {
	Slots int `json:"slots"`
}

// Scaled is the answer to a change of the number of slots.
type Scaled struct {
	Slots int `json:"slots"`
	Were  int `json:"were"`
}

func (s *Server) scale(w http.ResponseWriter, r *http.Request) {
	var body Scale
	if !read(w, r, &body) {
		return
	}
	before, _ := s.master.Snapshot()
	if err := s.master.Scale(body.Slots); err != nil {
		fail(w, statusOf(err), err)
		return
	}
	answer(w, http.StatusOK, Scaled{body.Slots, len(before.Slots)})
}
