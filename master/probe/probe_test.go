package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Probe{
		"3s":                                 {Delay: 3 * time.Second},
		"0s":                                 {},
		"tcp:127.0.0.1:900{slot}":            {TCP: "127.0.0.1:900{slot}"},
		"tcp:[::1]:9000":                     {TCP: "[::1]:9000"},
		"tcp:127.{generation}.0.{slot}:9000": {TCP: "127.{generation}.0.{slot}:9000"},
		"http://localhost":                   {HTTP: "http://localhost"},
		"http://127.0.0.1:900{slot}/up?a=b":  {HTTP: "http://127.0.0.1:900{slot}/up?a=b"},
	} {
		if got, err := Parse(text); got != want || err != nil {
			t.Errorf("%q: %+v, error %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "soon", "3", "-1s", "tcp:", "tcp:9000", "tcp::9000", "tcp:host", "tcp:host:0", "tcp:host:70000", "tcp:host:http",
		"tcp:{worker}:9000", "tcp:127.0.0.1:{port}", "http://", "http:///up", "http://host:0/", "http://host:{port}/", "https://host/",
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q: %+v, want an error", text, got)
		}
	}
	if _, err := Parse("soon"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"3s", "tcp:127.0.0.1:900{slot}", "http://[::1]:90/{generation}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		kinds := 0
		for _, kind := range []bool{p.TCP != "", p.HTTP != "", p.TCP+p.HTTP == "" && p.Delay >= 0} {
			if kind {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("%q: %+v", text, p)
		}
		if p.HTTP != "" {
			if _, err := http.NewRequest(http.MethodGet, expand(p.HTTP, 12, 34), nil); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}

// A delay is waited for from the call on.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := (Probe{Delay: 3 * time.Second}).Wait(t.Context(), 0, 1); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("%v, error %v", time.Since(start), err)
		}
	})
}

// TestTCP: the worker of this slot and generation must accept, and may begin to later.
func TestTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.3.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := Probe{TCP: fmt.Sprintf("127.{generation}.0.{slot}:%d", ln.Addr().(*net.TCPAddr).Port)}
	if err := p.Wait(t.Context(), 2, 3); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*interval)
	defer cancel()
	if err := p.Wait(ctx, 1, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another slot: error %v", err)
	}
}

// TestHTTP: it is asked until its status is one of success, and not longer.
func TestHTTP(t *testing.T) {
	var asked atomic.Int32
	statuses := []int{http.StatusServiceUnavailable, http.StatusNotFound, http.StatusFound}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/up/7/8" {
			t.Errorf("%s is asked for", r.URL)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(statuses[asked.Add(1)-1])
	}))
	defer server.Close()
	if err := (Probe{HTTP: server.URL + "/up/{slot}/{generation}"}).Wait(t.Context(), 7, 8); err != nil || int(asked.Load()) != len(statuses) {
		t.Errorf("asked %d times, error %v", asked.Load(), err)
	}
}

// A worker that accepts and says nothing is asked again and again, and the last error is told.
func TestSilent(t *testing.T) {
	silent := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(silent)
	ctx, cancel := context.WithTimeout(t.Context(), patience+3*interval)
	defer cancel()
	err := (Probe{HTTP: server.URL}).Wait(ctx, 0, 1)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), server.URL) {
		t.Errorf("error %v", err)
	}
}
