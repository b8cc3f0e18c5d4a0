package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestReadyWhenProbed: a worker that its link believes is ready takes its slot over only when it
// answers, at an address of its own.
func TestReadyWhenProbed(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	asked := map[string]int{}
	up := map[string]bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if asked[r.URL.Path]++; !up[r.URL.Path] {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	isAsked := func(path string, n int) bool {
		return eventually(func() bool { mu.Lock(); defer mu.Unlock(); return asked[path] >= n })
	}
	answers := func(path string) { mu.Lock(); defer mu.Unlock(); up[path] = true }

	b := start(t, 2, options{notReady: true, flags: []string{"--ready-when", server.URL + "/{slot}/{generation}"}})
	if !isAsked("/0/1", 2) || !isAsked("/1/1", 2) {
		t.Fatal("workers are not asked")
	}
	answers("/1/1")
	if b.await("worker ready").Slot != 1 {
		t.Error("another worker is ready")
	}
	answers("/0/1")
	b.awaitCount("worker ready", 2)

	b.signal(unix.SIGUSR2)
	if !isAsked("/0/2", 2) {
		t.Fatal("the new worker is not asked")
	}
	if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.generation != 1 {
		t.Errorf("%+v", a)
	}
	answers("/0/2")
	answers("/1/2")
	b.await("reload finished")
	if a := b.mustGet(sourceIn(0, 2, 0), "/"); a.generation != 2 {
		t.Errorf("%+v", a)
	}
}

func TestReadyWhenWrong(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--ready-when soon":                           "or http://HOST:PORT/PATH",
		"--ready-when tcp:localhost":                  "missing port",
		"--ready-when http://127.0.0.1:900{worker}/":  "port",
		"--ready-when 2m":                             "--ready-timeout 1m0s",
		"--ready-when message":                        "only Node workers",
		"--ready-when started --worker-link any":      "only Node workers",
		"--ready-when 0s --ready-timeout 1s --bogus":  "bogus",
		"--ready-when -1s":                            "delay such as 3s",
		"--ready-when tcp:127.0.0.1:{slot}{slot}0000": "port",
	} {
		var out fdtest.Log
		args := append(append([]string{"handfast", "run", "--listen", "127.0.0.1:0"}, strings.Fields(args)...), "--", "true")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if status := run(ctx, args, &out, &out); status != exitUsage || !strings.Contains(out.String(), want) {
			t.Errorf("%v: exit status %d: %s", fmt.Sprint(args), status, &out)
		}
		cancel()
	}
}
