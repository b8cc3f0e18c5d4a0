package admin

import (
	"net/http"
	"strings"

	"github.com/handfast/handfast/master"
)

// Route is a request that a Server answers, and what people and programs have to know of it.
type Route struct {
	Method, Path string
	Does         string
	Body         any   // whose JSON it takes; nil: none
	Answers      []any // whose JSON it gives, one of them: once, or if it is Progress, a line for each step; a string: in words
	Statuses     []int // of answers, beside those of every command (CommandStatuses)

	handle func(*Server, http.ResponseWriter, *http.Request)
}

// CommandStatuses are those that a request to change something may get, whatever it asks for: it has no JSON in its
// body, comes from another site or to an address that others can connect to, or has another Content-Type.
var CommandStatuses = []int{http.StatusBadRequest, http.StatusForbidden, http.StatusUnsupportedMediaType}

// Pattern is the route's, as http.ServeMux has it.
func (r Route) Pattern() string {
	path, _, _ := strings.Cut(r.Path, "?")
	if path == "/" {
		path = "/{$}" // and nothing below
	}
	return r.Method + " " + path
}

// Changes tells whether it is a command.
func (r Route) Changes() bool { return r.Method == http.MethodPost }

func (r Route) to(s *Server) http.HandlerFunc {
	h := func(w http.ResponseWriter, req *http.Request) { r.handle(s, w, req) }
	if r.Changes() {
		return command(h)
	}
	return h
}

// Routes are all that servers answer, in the order in which somebody may look for them.
func Routes() []Route {
	return []Route{
		{"GET", "/", "a page for browsers: slots, rates and a reload in progress, as they change", nil, []any{"HTML"}, []int{200}, (*Server).page},
		{"GET", "/healthz", "whether the master runs, and its supervisor answers within five seconds", nil, []any{"`ok`, or why not"}, []int{200, 503}, (*Server).healthy},
		{"GET", "/readyz", "whether each slot has a worker that serves, also during a reload", nil, []any{"`ok`, or why not"}, []int{200, 503}, (*Server).ready},
		{"GET", "/metrics", "the metrics, for Prometheus", nil, []any{"Prometheus' text"}, []int{200}, (*Server).measure},
		{"GET", "/v1/status", "what the master and each slot are doing", nil, []any{master.Status{}}, []int{200}, (*Server).status},
		{"GET", "/v1/slot?client=ADDRESS", "which slot a client belongs to: its address, its `--key`, or the id of its session", nil, []any{master.Placement{}}, []int{200, 400}, (*Server).slot},
		{"POST", "/v1/reload", "replaces all workers, one by one. During a reload: once more afterwards", nil, []any{Progress{}}, []int{200, 503}, (*Server).reload},
		{"POST", "/v1/drain", "gives a `slot` a fresh worker; the old one finishes what it has. With `now` and no `slot`, workers that linger drain; with both, or with `generation`, only those", Drain{}, []any{Progress{}, Drained{}}, []int{200, 404, 409, 503}, (*Server).drain},
		{"POST", "/v1/scale", "changes the number of slots", Scale{}, []any{Scaled{}}, []int{200, 503}, (*Server).scale},
		{"POST", "/v1/upgrade", "replaces the master's program and configuration. The answer comes when the new program has been tried and is about to run; `upgrade.count` of the status is then `count`", nil, []any{Upgrading{}}, []int{200, 409, 503}, (*Server).upgrade},
		{"POST", "/v1/stop", "stops the master; the answer ends with it", nil, []any{Progress{}}, []int{200}, (*Server).stop},
	}
}
