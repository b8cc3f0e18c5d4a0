package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// acceptThreads is how many threads of a worker that accepts wait.
const acceptThreads = 4

// TestInject: what is promised is promised to servers that know nothing of handfast, also where
// the kernel cannot give clients to slots.
func TestInject(t *testing.T) {
	t.Parallel()
	under(t, variant{link: "any"})
	for name, test := range map[string]func(*testing.T){
		"Sticky":                  TestSticky,
		"Scale":                   TestScale,
		"BehindProxy":             TestBehindProxy,
		"ReloadUnderLoad":         func(t *testing.T) { t.Parallel(); reloadUnderLoad(t, reloads(t, 4), 0) },
		"KillUnderLoad":           TestKillUnderLoad,
		"StopWithRequestInFlight": TestStopWithRequestInFlight,
		"WhenDownNext":            TestWhenDownNext,
		"FileLimit":               TestFileLimit,
	} {
		t.Run(name, test)
	}
}

// startInjected is start with --worker-link any and a master that routes.
func startInjected(t *testing.T, n int, o options) *instance {
	t.Helper()
	o.link = "any"
	b := start(t, n, o)
	if l := b.await("worker link chosen"); !strings.Contains(l.text, `"any, by accept injection"`) {
		t.Error(l.text)
	}
	return b
}

// TestInjectProxyProtocol: the header is consumed, and the worker's client is the proxy.
func TestInjectProxyProtocol(t *testing.T) {
	t.Parallel()
	const slots = 4
	b := startInjected(t, slots, options{flags: []string{"--proxy-protocol"}})
	for i := range 20 {
		client := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		a := b.ask(proxyAt, fmt.Sprintf("PROXY TCP4 %s 192.0.2.1 4711 80\r\n", client)+"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
		if a.slot != slotOf(client, slots) || a.client != proxyAt.String() {
			t.Errorf("client %v: %+v, want slot %d", client, a, slotOf(client, slots))
		}
	}
}

// TestInjectStalled: a worker that is stalled has a bound, and harms its own slot only; when it is
// killed its successor serves all who wait. Threads that wait in accept cannot be stopped
// there: each takes one connection with it.
func TestInjectStalled(t *testing.T) {
	t.Parallel()
	const clients = 300 // more than are queued for it
	for worker, mayLose := range map[string]int{"http": 0, "accepts": acceptThreads} {
		t.Run(worker, func(t *testing.T) {
			b := startInjected(t, 2, options{worker: []string{worker, strconv.Itoa(acceptThreads)}})
			victim := b.worker(1)
			if mayLose == 0 {
				freeze(t, victim)
			} else {
				freezeMost(t, victim)
			}
			waiting := b.open(sourceIn(1, 2, 0), clients)
			b.mustGet(sourceIn(0, 2, 0), "/")
			unix.Kill(victim, unix.SIGKILL)
			lost := 0
			for i, conn := range waiting {
				a, err := response(conn)
				if err != nil {
					if lost++; lost > mayLose {
						t.Fatalf("client %d: %v", i, err)
					}
				} else if a.status != http.StatusOK || a.pid != b.worker(1) {
					t.Fatalf("client %d: %+v", i, a)
				}
			}
			if end := b.stopped(); end.Refused != 0 || end.TakenBack < 100 {
				t.Errorf("counted: %s", end.text)
			}
		})
	}
}

// TestInjectStop: who was accepted is served when handfast stops, also if the workers are slow to accept.
func TestInjectStop(t *testing.T) {
	t.Parallel()
	b := startInjected(t, 2, options{})
	workers := []int{b.worker(0), b.worker(1)}
	for _, pid := range workers {
		freeze(t, pid)
	}
	waiting := append(b.open(sourceIn(0, 2, 0), 5), b.open(sourceIn(1, 2, 0), 5)...)
	b.signal(unix.SIGTERM)
	b.await("stopping")
	for conn, err := b.dial(source(0)); err == nil; conn, err = b.dial(source(0)) {
		waiting = append(waiting, conn) // it came before the end
		request(conn, "/")
	}
	for _, pid := range workers {
		unix.Kill(pid, unix.SIGCONT)
	}
	for i, conn := range waiting {
		if a, err := response(conn); err != nil || a.status != http.StatusOK {
			t.Errorf("client %d: %+v, %v", i, a, err)
		}
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// soakConnections says how many connections TestInjectSoak makes. With HANDFAST_SOAK_CALM there is
// no storm, to see what it costs.
const soakConnections = "HANDFAST_SOAK_CONNECTIONS"

// TestInjectSoak: a storm of signals on the master and the workers meanwhile, and every connection is
// answered by its slot's worker.
func TestInjectSoak(t *testing.T) {
	t.Parallel()
	total := 800
	if text := os.Getenv(soakConnections); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		total = n
	}
	for _, worker := range []string{"http", "accepts"} {
		t.Run(worker, func(t *testing.T) { soak(t, worker, total/2) })
	}
}

func soak(t *testing.T, worker string, total int) {
	const slots, clients = 2, 8
	b := startInjected(t, slots, options{worker: []string{worker, strconv.Itoa(acceptThreads)}, flags: []string{"--behind-proxy", "--log-level", "info"}})
	master := b.cmd.Process.Pid
	ctx, cancel := context.WithCancel(t.Context())
	var storm sync.WaitGroup
	signals := 0
	if os.Getenv("HANDFAST_SOAK_CALM") != "" { // to see what the storm costs
		cancel()
	}
	storm.Go(func() {
		for ctx.Err() == nil {
			for _, sig := range []unix.Signal{unix.SIGURG, unix.SIGWINCH} {
				unix.Kill(master, sig)
				signals++
			}
			time.Sleep(20 * time.Microsecond)
		}
	})
	var made, incidents atomic.Int64
	var load sync.WaitGroup
	start, cpu := time.Now(), cpuTime(t, master)
	for i := range clients {
		load.Go(func() {
			for k := made.Add(1); k <= int64(total) && incidents.Load() < 100; k = made.Add(1) {
				client := proxied(int(k % 1000))
				err := soakOne(b, source(i), client, slotOf(client, slots))
				if err != nil {
					incidents.Add(1)
					t.Errorf("connection %d: %v", k, err)
				}
			}
		})
	}
	load.Wait()
	cancel()
	storm.Wait()
	took := time.Since(start)
	each := (cpuTime(t, master) - cpu) / time.Duration(total)
	t.Logf("%s: %d connections, %d incidents, %d signals, %.0f connections/s, %v of the master's CPU time each",
		worker, total, incidents.Load(), signals, float64(total)/took.Seconds(), each)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if strings.Contains(l.text, "strange") || l.Level == "error" {
			t.Error(l.text)
		}
	}
}

// soakOne makes one request for a client, from the proxy's address.
func soakOne(b *instance, proxy, client netip.Addr, slot int) error {
	conn, err := b.dial(proxy)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetLinger(0) // no TIME_WAIT
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %s\r\nConnection: close\r\n\r\n", client); err != nil {
		return err
	}
	a, err := response(conn)
	switch {
	case err != nil:
		return err
	case a.status != http.StatusOK || a.slot != slot || a.client != proxy.String():
		return fmt.Errorf("%+v, want slot %d", a, slot)
	}
	return nil
}
