package main

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/examples/trial"
	"github.com/handfast/handfast/master/sockdiag"
)

// startCareless runs a server that SIGTERM ends at once.
func startCareless(t *testing.T, flags ...string) *balancer {
	t.Helper()
	address := trial.FreeAddress(t)
	return start(t, 1, options{
		flags:  append([]string{"--listen", address}, flags...),
		worker: []string{"careless"},
		change: func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "HANDFAST_TEST_LISTEN="+listenFor(address, flags)) },
	})
}

// listenFor is where the worker listens: nowhere, if it inherits its listener.
func listenFor(address string, flags []string) string {
	if flags[len(flags)-1] == "activation" {
		return ""
	}
	return address
}

// foreignLinks are the ways of connections to servers that know nothing of handfast.
var foreignLinks = map[string][]string{
	"any":        {"--route", "kernel", "--worker-link", "any"},
	"activation": {"--route", "kernel", "--worker-link", "activation"},
	"inject":     {"--route", "master", "--worker-link", "any"},
}

// TestDrainNone is row A7: a server that is not known to finish on a signal finishes its requests
// in a reload, and when handfast stops, which does not wait for connections that are only kept alive.
func TestDrainNone(t *testing.T) {
	for name, flags := range foreignLinks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startCareless(t, flags...)
			first := b.worker(0)
			slow := b.askSlow(t, "/1500ms")
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if a := <-slow; a.err != nil || a.pid != first {
				t.Errorf("a request during the reload: %v of worker %d, want worker %d", a.err, a.pid, first)
			}
			if l := b.await("worker exited"); l.PID != first {
				t.Errorf("worker %d has exited, want %d", l.PID, first)
			}

			second := b.worker(0)
			kept := b.keepAlive()
			defer kept.Close()
			slow = b.askSlow(t, "/1500ms")
			begin := time.Now()
			b.signal(unix.SIGTERM)
			if a := <-slow; a.err != nil || a.pid != second {
				t.Errorf("a request during the stop: %v of worker %d, want worker %d", a.err, a.pid, second)
			}
			if status := b.exit(); status != 0 || time.Since(begin) > 8*time.Second { // a timeout of 10 s
				t.Errorf("stopped with %d after %v", status, time.Since(begin))
			}
		})
	}
}

// TestDrainLost is row A7: a worker that dies of its drain signal, with a request that it has not
// answered, is named with the remedy, once.
func TestDrainLost(t *testing.T) {
	const message = "worker died of its drain signal at once, with requests that it had not answered"
	for name, flags := range foreignLinks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startCareless(t, append([]string{"--drain-signal", "TERM"}, flags...)...)
			for n := range 2 {
				slow := b.askSlow(t, "/20s")
				b.signal(unix.SIGUSR2)
				b.awaitCount("worker exited", n+1)
				if a := <-slow; a.err == nil {
					t.Error("the request was answered")
				}
			}
			b.await(message)
			b.signal(unix.SIGTERM)
			b.exit()
			if n := len(b.log(message)); n != 1 {
				t.Errorf("said %d times, want once", n)
			}
		})
	}
}

// late is an answer that comes later.
type late struct {
	answer
	err error
}

// askSlow sends a request, which the worker has then, and returns where its answer comes.
func (b *balancer) askSlow(t *testing.T, path string) <-chan late {
	t.Helper()
	conn, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	if err := request(conn, path); err != nil {
		t.Fatal(err)
	}
	from, to := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	if !eventually(func() bool {
		all, err := sockdiag.ListTraffic(to.Port(), sockdiag.Established)
		i := slices.IndexFunc(all, func(s sockdiag.Socket) bool { return s.Remote == from && s.Local == to })
		return err == nil && i >= 0 && all[i].Accepted() && all[i].Received > 0 && all[i].Unread == 0
	}) {
		t.Fatalf("nobody has read the request for %s", path)
	}
	result := make(chan late, 1)
	go func() {
		defer conn.Close()
		a, err := response(conn)
		result <- late{a, err}
	}()
	return result
}

// keepAlive opens a connection that was answered a while ago.
func (b *balancer) keepAlive() net.Conn {
	b.t.Helper()
	conn, err := b.dial(source(0))
	if err != nil {
		b.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := response(conn); err != nil {
		b.t.Fatal(err)
	}
	return conn
}
