package admin

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/supervisor"
)

// TestRoutes: each route answers with the statuses that it says, and with no others: to what it takes, to what it does
// not, and when the master cannot do it.
func TestRoutes(t *testing.T) {
	var failure error
	f := newFake(1)
	f.result = make(chan error, 2)
	f.result <- nil // the reload, and the drain, end at once
	f.result <- nil
	s := NewServer(f, hclog.NewNullLogger())
	s.UpgradeBy(func(_ context.Context, before func()) error {
		if failure == nil {
			before()
		}
		return failure
	})
	s.MeasureBy(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") }))
	ln, _ := serveBy(t, s, Address{"tcp", "127.0.0.1:0"})
	others, _ := serveBy(t, s, Address{"tcp", "0.0.0.0:0"})

	// What the master says to each command.
	failures := map[string][]error{
		"/v1/reload":  {supervisor.ErrStopped},
		"/v1/drain":   {supervisor.ErrStopped, supervisor.ErrNoSlot, supervisor.ErrEmpty, supervisor.ErrReloading},
		"/v1/scale":   {supervisor.ErrStopped, errFake},
		"/v1/upgrade": {supervisor.ErrStopped, supervisor.ErrUpgradeReload, errFake},
		"/v1/slot":    {errFake},
	}
	bodies := map[string]string{"/v1/drain": `{"slot": 0}`, "/v1/scale": `{"slots": 2}`}
	for _, r := range Routes() {
		path, _, _ := strings.Cut(r.Path, "?")
		var seen []int
		see := func(status int, _ string, _ http.Header) { seen = append(seen, status) }
		if path == "/v1/stop" {
			seen = append(seen, http.StatusOK) // and ends with the server: TestStop
		} else {
			see(ask(t, ln, r.Method, r.Path, bodies[path], isJSON))
		}
		for _, err := range failures[path] {
			f.err, failure = err, err
			see(ask(t, ln, r.Method, r.Path, bodies[path], isJSON))
		}
		f.err, failure = nil, nil
		want := slices.Clone(r.Statuses)
		switch {
		case r.Changes():
			see(ask(t, ln, r.Method, path, "{", isJSON))
			see(ask(t, ln, r.Method, path, bodies[path], nil))
			see(ask(t, others, r.Method, path, bodies[path], isJSON))
			want = append(want, CommandStatuses...)
		case path == "/v1/slot":
			see(ask(t, ln, r.Method, path, "", nil))
		case path == "/readyz":
			f.stopped = true
			see(ask(t, ln, r.Method, path, "", nil))
			f.stopped = false
		case path == "/healthz":
			f.hangs = errFake
			see(ask(t, ln, r.Method, path, "", nil))
			f.hangs = nil
		}
		slices.Sort(seen)
		slices.Sort(want)
		if seen = slices.Compact(seen); !slices.Equal(seen, slices.Compact(want)) {
			t.Errorf("%s: statuses %d, want %d", r.Pattern(), seen, want)
		}
	}
}
