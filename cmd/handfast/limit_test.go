package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master"
)

// occupy opens n connections that stay, and wants all of them served.
func (b *instance) occupy(from netip.Addr, n int) (open []*websocket.Conn) {
	b.t.Helper()
	for range n {
		open = append(open, b.socketFor(from))
	}
	return open
}

// TestMaxConnections: beyond --max-connections-per-slot clients of that slot are refused at once, with
// 503 and not after the patience with an empty one; others are not. What ends makes room.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--route", "auto", "--max-connections-per-slot", "5", "--max-retries", "1000"}})
	if l := b.await("route chosen"); !strings.Contains(l.text, "--max-connections-per-slot") {
		t.Error(l.text)
	}
	ours, others := sourceIn(0, 2, 0), sourceIn(1, 2, 0)
	open := b.occupy(ours, 5)
	for range 3 {
		conn, err := b.dial(ours)
		if err != nil {
			t.Fatal(err)
		}
		if err := request(conn, "/"); err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		text.ReadFrom(conn)
		conn.Close()
		if s := text.String(); !strings.HasPrefix(s, "HTTP/1.1 503 ") || !strings.Contains(s, "\r\nRetry-After: 1\r\n") {
			t.Errorf("%q", s)
		}
	}
	b.occupy(others, 5)
	s := b.awaitStatus("what is open", func(s *master.Status) bool { w := s.Slots[0].Worker; return w != nil && known(w.Open) == "5" })
	if sl := s.Slots[0]; known(sl.Worker.MaxOpen) != "5" || sl.Refused != 3 || s.Slots[1].Refused != 0 || s.Totals.Parked != 0 {
		t.Errorf("%+v", sl)
	}
	if text := b.tell("status"); !strings.Contains(text, " 5/5 ") {
		t.Error(text)
	}
	if l := b.await("connection refused"); l.Slot != 0 || !strings.Contains(l.text, "--max-connections-per-slot") {
		t.Error(l.text)
	}
	text := b.metrics()
	for _, line := range []string{`handfast_refused_connections_total{reason="too_many_open"} 3`, `handfast_worker_open_connections_limit{slot="0"} 5`} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no %q in\n%s", line, text)
		}
	}

	// The master soon knows of a connection that the worker has closed.
	open[0].CloseNow()
	if !eventually(func() bool { a, err := b.get(ours, "/"); return err == nil && a.status == http.StatusOK }) {
		t.Error("there is no room for another one")
	}

	// A worker that comes into the slot may have as many, whatever the old one still has.
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	open = b.occupy(ours, 5)
	if a, err := b.get(ours, "/"); err != nil || a.status != http.StatusServiceUnavailable {
		t.Errorf("%+v, %v", a, err)
	}
	// And so may one whose predecessor was killed with all it had.
	unix.Kill(b.worker(0), unix.SIGKILL)
	b.awaitCount("worker ready", 5)
	open[0].CloseNow()
	b.occupy(ours, 5)
	if log := b.log("worker cannot be held to everything"); len(log) > 0 {
		t.Error(log[0].text)
	}
}

// TestMaxConnectionsBurst: however many come at the same time, the worker gets no more.
func TestMaxConnectionsBurst(t *testing.T) {
	t.Parallel()
	const limit, clients = 20, 300
	b := start(t, 1, options{flags: []string{"--max-connections-per-slot", fmt.Sprint(limit)}})
	var all, connected sync.WaitGroup
	statuses := make(chan int, clients)
	for range clients {
		connected.Add(1)
		all.Go(func() {
			conn, err := b.dial(source(0))
			if err == nil {
				defer conn.Close()
				_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n") // and stay
			}
			connected.Done()
			if err != nil {
				t.Error(err)
				return
			}
			a, err := response(conn)
			if err != nil {
				t.Error(err)
			}
			statuses <- a.status
			for len(statuses) < clients && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
		})
	}
	all.Wait()
	count := map[int]int{}
	for range len(statuses) {
		count[<-statuses]++
	}
	if count[http.StatusOK] != limit || count[http.StatusServiceUnavailable] != clients-limit {
		t.Errorf("statuses %v, want %d of 200 and %d of 503", count, limit, clients-limit)
	}
}

// TestMaxConnectionsChurn: short connections, fewer at a time than the limit and far more than it
// in a second, are all served.
func TestMaxConnectionsChurn(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{flags: []string{"--max-connections-per-slot", "64"}})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if a, err := b.get(source(0), "/"); err != nil || a.status != http.StatusOK {
					t.Errorf("%+v, %v", a, err)
				}
			}
		})
	}
	all.Wait()
}

// TestMaxConnectionsOldWorker: a worker that does not report is not held to a limit, which is said once
// in each generation.
func TestMaxConnectionsOldWorker(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{worker: []string{"old"}, flags: []string{"--max-connections-per-slot", "1"}})
	said := b.await("worker cannot be held to everything")
	if said.Level != "warn" || said.Generation != 1 || !strings.Contains(said.text, "--max-connections-per-slot") {
		t.Error(said.text)
	}
	b.occupy(source(0), 5)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	if log := b.log("worker cannot be held to everything"); len(log) != 2 || log[1].Generation != 2 {
		t.Errorf("%d times", len(log))
	}
}

// TestMailboxNeeded: what only workers with a mailbox can do is refused with others, and the error
// says what to do.
func TestMailboxNeeded(t *testing.T) {
	t.Parallel()
	for args, says := range map[string][]string{
		"--max-connections-per-slot 5 --route kernel":                          {"--route kernel: with --max-connections-per-slot", "use --route master"},
		"--max-connections-per-slot 5 --worker-link node":                      {"--max-connections-per-slot 5", "server.maxConnections", "--worker-link native"},
		"--max-connections-per-slot 5 --worker-link activation":                {"--max-connections-per-slot", "use --worker-link native"},
		"--max-connections-per-slot 5 --route kernel --worker-link activation": {"--max-connections-per-slot"},
		"--max-connections-per-slot -1":                                        {"--max-connections-per-slot -1", "0 to"},
		"--watchdog 1ms":                                                       {"--watchdog 1ms", "at least 100ms"},
		"--watchdog -1s":                                                       {"--watchdog -1s", "at least 0s"},
		"--when-hung replace":                                                  {"--when-hung replace", "--watchdog"},
		"--when-hung wait --watchdog 1s":                                       {`--when-hung "wait"`, "report or replace"},
	} {
		var out fdtest.Log
		command := "handfast run --listen 127.0.0.1:0 " + args + " -- true"
		if status := run(t.Context(), strings.Fields(command), &out, &out); status != exitUsage {
			t.Errorf("%s: exit status %d", args, status)
		}
		for _, want := range says {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: does not say %s: %s", args, want, &out)
			}
		}
	}
}
