package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

func TestStatus(t *testing.T) {
	status, err := client(t, newFake(1)).Status(t.Context())
	if err != nil || status.Name != "fake" || len(status.Slots) != 1 || status.Slots[0].Worker.PID != 100 {
		t.Errorf("%+v, %v", status, err)
	}
}

func TestPlace(t *testing.T) {
	f := newFake(1)
	c := client(t, f)
	p, err := c.Place(t.Context(), "a b&c=ü")
	if err != nil || p.Client != "a b&c=ü" || p.Slot != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	f.err = errFake
	if _, err := c.Place(t.Context(), "x"); err == nil || err.Error() != errFake.Error() {
		t.Error(err)
	}
}

func TestScale(t *testing.T) {
	f := newFake(3)
	c := client(t, f)
	s, err := c.Scale(t.Context(), 5)
	if err != nil || s != (Scaled{Slots: 5, Were: 3}) || !reflect.DeepEqual(f.deeds(), []any{5}) {
		t.Errorf("%+v, %v, did %v", s, err, f.deeds())
	}
	f.err = errFake
	if _, err := c.Scale(t.Context(), 0); err == nil || err.Error() != errFake.Error() {
		t.Error(err)
	}
}

// reloading follows a reload of f and collects its steps.
func reloading(t *testing.T, f *fake) (steps chan Progress, result chan error) {
	c := client(t, f)
	steps, result = make(chan Progress, 100), make(chan error, 1)
	go func() {
		result <- c.Reload(t.Context(), func(p Progress) { steps <- p })
		close(steps)
	}()
	return steps, result
}

// step wants this to be the next step.
func step(t *testing.T, steps <-chan Progress, want string) {
	t.Helper()
	select {
	case p := <-steps:
		got := fmt.Sprintf("%s %d/%d", p.Step, p.Done, p.Slots)
		if p.Slot != nil {
			got += fmt.Sprintf(" slot %d pid %d", *p.Slot, p.PID)
		}
		if got != want {
			t.Fatalf("step %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("no step, want %q", want)
	}
}

// TestReload: it is told slot by slot, behind the reload before, and also what nobody looked at
// in time.
func TestReload(t *testing.T) {
	f := newFake(3)
	steps, result := reloading(t, f)
	step(t, steps, "waiting 0/3")
	f.change(func(s *supervisor.Snapshot) {
		s.Generation, s.Reload = 2, &supervisor.ReloadStatus{Generation: 2, Slots: 3}
		s.Slots[0].Next = worker(0, 2, 200)
	})
	step(t, steps, "starting 0/3 slot 0 pid 200")
	f.change(func(s *supervisor.Snapshot) {
		s.Slots[0].Worker, s.Slots[0].Next = worker(0, 2, 200), nil
		s.Slots[1].Worker = worker(1, 2, 201)
		s.Slots[2].Next = worker(2, 2, 202)
		s.Reload.Done = 2
	})
	step(t, steps, "replaced 1/3 slot 0 pid 200")
	step(t, steps, "replaced 2/3 slot 1 pid 201")
	step(t, steps, "starting 2/3 slot 2 pid 202")
	f.change(func(s *supervisor.Snapshot) {
		s.Slots[2].Worker, s.Slots[2].Next = worker(2, 2, 202), nil
		s.Reload.Done, s.Reload.Ended = 3, time.Now()
		f.result <- nil
	})
	step(t, steps, "replaced 3/3 slot 2 pid 202")
	step(t, steps, "finished 3/3")
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestReloadFails(t *testing.T) {
	f := newFake(1)
	steps, result := reloading(t, f)
	step(t, steps, "waiting 0/1")
	f.result <- errFake
	step(t, steps, "failed 0/1")
	if err := <-result; err == nil || err.Error() != errFake.Error() {
		t.Error(err)
	}
	f.err = supervisor.ErrStopped
	steps, result = reloading(t, f)
	if err := <-result; err == nil || err.Error() != supervisor.ErrStopped.Error() || len(steps) > 0 {
		t.Error(err)
	}
}

// TestReloadServerEnds: a master that ends during a reload has not done it.
func TestReloadServerEnds(t *testing.T) {
	f, a := newFake(1), socket(t)
	_, stop := serve(t, f, a)
	begun := make(chan struct{}, 10)
	result := make(chan error, 1)
	go func() { result <- NewClient(a).Reload(t.Context(), func(Progress) { begun <- struct{}{} }) }()
	<-begun
	stop()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "has ended before it was done") {
		t.Error(err)
	}
}

func TestDrain(t *testing.T) {
	f := newFake(3)
	c := client(t, f)
	steps, result := make(chan Progress, 10), make(chan error, 1)
	go func() { result <- c.Drain(t.Context(), 1, func(p Progress) { steps <- p }) }()
	fdtest.Eventually(t, "drain", func() bool { return len(f.deeds()) > 0 })
	f.change(func(s *supervisor.Snapshot) { s.Slots[1].Next = worker(1, 1, 200) })
	step(t, steps, "starting 0/1 slot 1 pid 200")
	f.change(func(s *supervisor.Snapshot) {
		s.Slots[1].Worker, s.Slots[1].Next = worker(1, 1, 200), nil
		f.result <- nil
	})
	step(t, steps, "finished 1/1 slot 1 pid 200")
	if err := <-result; err != nil || !reflect.DeepEqual(f.deeds(), []any{1}) {
		t.Error(err, f.deeds())
	}
	f.err = supervisor.ErrNoSlot
	if err := c.Drain(t.Context(), 7, nil); err == nil || err.Error() != f.err.Error() {
		t.Error(err)
	}
}

// TestStop: the answer ends with the master, and with it the waiting for it; its process is this
// one here, so only that is tried.
func TestStop(t *testing.T) {
	f, a := newFake(2), socket(t)
	_, stop := serve(t, f, a)
	steps, result := make(chan Progress, 10), make(chan error, 1)
	c := NewClient(a)
	go func() {
		result <- c.each(t.Context(), "/v1/stop", struct{}{}, func(p Progress) error { steps <- p; return nil })
	}()
	if p := <-steps; p.Step != StepStopping || p.Workers != 2 {
		t.Errorf("%+v", p)
	}
	f.change(func(s *supervisor.Snapshot) { s.Slots[0].Worker = nil })
	if p := <-steps; p.Workers != 1 {
		t.Errorf("%+v", p)
	}
	if err := c.Stop(t.Context(), false, func(p Progress) { steps <- p }); err != nil {
		t.Error(err)
	}
	select {
	case err := <-result:
		t.Errorf("ended before the master: %v", err)
	default:
	}
	stop()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(f.deeds(), []any{"stop", "stop"}) {
		t.Error(f.deeds())
	}
}

// ask sends a request as anybody may.
func ask(t *testing.T, ln net.Listener, method, path, body string, header http.Header) (status int, text string, answer http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+ln.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Host = header.Get("Host")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(content), resp.Header
}

var isJSON = http.Header{"Content-Type": {"application/json"}}

// TestRequests: what is answered to whom. Whatever a browser can be made to send changes nothing.
func TestRequests(t *testing.T) {
	f := newFake(1)
	ln, _ := serve(t, f, Address{"tcp", "127.0.0.1:0"})
	port := ln.Addr().(*net.TCPAddr).Port
	with := func(pairs ...string) http.Header {
		h := isJSON.Clone()
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, c := range []struct {
		what, method, path, body string
		header                   http.Header
		status                   int
	}{
		{"health", "GET", "/healthz", "", nil, 200},
		{"readiness", "GET", "/readyz", "", nil, 200},
		{"page", "GET", "/", "", nil, 200},
		{"no such page", "GET", "/index.html", "", nil, 404},
		{"status", "GET", "/v1/status", "", nil, 200},
		{"status by POST", "POST", "/v1/status", "", isJSON, 405},
		{"whose slot", "GET", "/v1/slot", "", nil, 400},
		{"scale", "POST", "/v1/scale", `{"slots": 2}`, isJSON, 200},
		{"scale, with a parameter", "POST", "/v1/scale", `{"slots": 2}`, with("Content-Type", "application/json; charset=utf-8"), 200},
		{"change by GET", "GET", "/v1/stop", "", isJSON, 405},
		{"form", "POST", "/v1/stop", "a=b", with("Content-Type", "application/x-www-form-urlencoded"), 415},
		{"form as text", "POST", "/v1/scale", `{"slots": 2}`, with("Content-Type", "text/plain"), 415},
		{"upload", "POST", "/v1/stop", "", with("Content-Type", "multipart/form-data; boundary=x"), 415},
		{"no type", "POST", "/v1/stop", "", nil, 415},
		{"script of another site", "POST", "/v1/scale", `{"slots": 2}`, with("Sec-Fetch-Site", "cross-site"), 403},
		{"script of another origin", "POST", "/v1/scale", `{"slots": 2}`, with("Origin", "http://evil.example"), 403},
		{"asking for permission", "OPTIONS", "/v1/scale", "", with("Origin", "http://evil.example", "Access-Control-Request-Method", "POST"), 405},
		{"rebound name", "GET", "/v1/status", "", with("Host", "evil.example"), 421},
		{"rebound name with a port", "POST", "/v1/stop", "", with("Host", fmt.Sprintf("evil.example:%d", port)), 421},
		{"health check by the service's name", "GET", "/readyz", "", with("Host", "app.example"), 200},
		{"localhost", "GET", "/v1/status", "", with("Host", fmt.Sprintf("LocalHost:%d", port)), 200},
		{"IPv6", "GET", "/v1/status", "", with("Host", fmt.Sprintf("[::1]:%d", port)), 200},
		{"address without port", "GET", "/v1/status", "", with("Host", "10.0.0.1"), 200},
		{"no JSON", "POST", "/v1/scale", `{"slots":`, isJSON, 400},
		{"other JSON", "POST", "/v1/scale", `{"workers": 1}`, isJSON, 400},
		{"more JSON", "POST", "/v1/scale", `{"slots": 1}{"slots": 2}`, isJSON, 400},
		{"no slot", "POST", "/v1/drain", `{}`, isJSON, 400},
		{"a generation of a slot", "POST", "/v1/drain", `{"slot": 1, "generation": 2}`, isJSON, 400},
		{"too much", "POST", "/v1/scale", `{"slots": ` + strings.Repeat(" ", maxBody) + `1}`, isJSON, 400},
	} {
		status, text, header := ask(t, ln, c.method, c.path, c.body, c.header)
		if status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.what, status, c.status, text)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'") ||
			header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: header %v", c.what, header)
		}
	}
	if !reflect.DeepEqual(f.deeds(), []any{2, 2}) {
		t.Errorf("did %v, want to be scaled twice", f.deeds())
	}
}

// TestHealthCheckWithoutHost: as HAProxy makes it unless told otherwise. Nothing else is answered to who names no host.
func TestHealthCheckWithoutHost(t *testing.T) {
	ln, _ := serve(t, newFake(1), Address{"tcp", "127.0.0.1:0"})
	for path, want := range map[string]string{"/readyz": "HTTP/1.0 200 OK", "/healthz": "HTTP/1.0 200 OK", "/v1/status": "HTTP/1.0 421 Misdirected Request"} {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		answer, err := io.ReadAll(conn)
		conn.Close()
		if line, _, _ := strings.Cut(string(answer), "\r\n"); err != nil || line != want {
			t.Errorf("%s: %q, error %v, want %q", path, line, err, want)
		}
	}
}

// TestReadOnly: on an address that others can connect to, nobody is told what to do.
func TestReadOnly(t *testing.T) {
	for address, want := range map[string]int{"127.0.0.1:0": 200, "[::1]:0": 200, "0.0.0.0:0": 403} {
		f := newFake(1)
		ln, _ := serve(t, f, Address{"tcp", address})
		if status, text, _ := ask(t, ln, "POST", "/v1/scale", `{"slots": 2}`, isJSON); status != want || len(f.deeds()) > 0 != (want == 200) {
			t.Errorf("%s: status %d, did %v: %s", address, status, f.deeds(), text)
		}
		if status, text, _ := ask(t, ln, "GET", "/v1/status", "", nil); status != 200 {
			t.Errorf("%s: status %d: %s", address, status, text)
		}
	}
}

// TestErrors: why something is not done decides the status.
func TestErrors(t *testing.T) {
	f := newFake(1)
	ln, _ := serve(t, f, Address{"tcp", "127.0.0.1:0"})
	for err, want := range map[error]int{
		supervisor.ErrStopped:                          503,
		fmt.Errorf("%w 7", supervisor.ErrNoSlot):       404,
		fmt.Errorf("%w: slot 0", supervisor.ErrEmpty):  409,
		supervisor.ErrReloading:                        409,
		errors.New("supervisor: 0 workers, want more"): 400,
	} {
		f.err = err
		var failure Failure
		status, text, _ := ask(t, ln, "POST", "/v1/drain", `{"slot": 7}`, isJSON)
		if status != want || json.Unmarshal([]byte(text), &failure) != nil || failure.Error != err.Error() {
			t.Errorf("%v: status %d, want %d: %s", err, status, want, text)
		}
	}
	f.stopped = true
	if status, text, _ := ask(t, ln, "GET", "/readyz", "", nil); status != 503 || text != "not ready: stopping\n" {
		t.Errorf("status %d: %s", status, text)
	}
	if status, _, _ := ask(t, ln, "GET", "/healthz", "", nil); status != 200 {
		t.Errorf("a master that stops is not healthy: status %d", status)
	}
	f.hangs = context.DeadlineExceeded
	if status, text, _ := ask(t, ln, "GET", "/healthz", "", nil); status != 503 {
		t.Errorf("a master that hangs is healthy: status %d: %s", status, text)
	}
}

// TestDrainNow: workers that linger are told to drain, all of them, or those of a slot and of a generation.
func TestDrainNow(t *testing.T) {
	f := newFake(1)
	f.linger = []supervisor.Seat{{Slot: 0, Generation: 1}, {Slot: 0, Generation: 2}, {Slot: 1, Generation: 2}}
	c, zero, two := client(t, f), 0, 2
	for _, tt := range []struct {
		of   Drain
		want int
	}{{Drain{}, 3}, {Drain{Slot: &zero}, 2}, {Drain{Generation: &two}, 2}, {Drain{Slot: &zero, Generation: &two}, 1}, {Drain{Slot: &two}, 0}} {
		if drained, err := c.DrainNow(t.Context(), tt.of); err != nil || drained.Workers != tt.want {
			t.Errorf("%+v: %+v, %v", tt.of, drained, err)
		}
	}
	f.err = supervisor.ErrStopped
	if _, err := c.DrainNow(t.Context(), Drain{}); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Error(err)
	}
}

// TestClientLeaves: what was begun goes on.
func TestClientLeaves(t *testing.T) {
	f := newFake(1)
	c := client(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Reload(ctx, func(Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || !reflect.DeepEqual(f.deeds(), []any{"reload"}) {
		t.Error(err, f.deeds())
	}
}
