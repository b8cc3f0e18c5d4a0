package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// slotsOf asks from each source, times times, and returns the slots. It fails when
// a source does not stay with one slot or its address does not reach the worker.
func (b *instance) slotsOf(sources []netip.Addr, times int) map[netip.Addr]int {
	b.t.Helper()
	slots := make(map[netip.Addr]int)
	for range times {
		for _, from := range sources {
			a := b.mustGet(from, "/")
			if was, known := slots[from]; known && was != a.slot {
				b.t.Fatalf("%v came to slot %d, before to slot %d", from, a.slot, was)
			}
			if a.client != from.String() {
				b.t.Fatalf("%v is seen as %s", from, a.client)
			}
			slots[from] = a.slot
		}
	}
	return slots
}

func sources(n int) (all []netip.Addr) {
	for i := range n {
		all = append(all, source(i))
	}
	return all
}

// same fails unless two maps are equal.
func same(t *testing.T, what string, before, after map[netip.Addr]int) {
	t.Helper()
	for from, slot := range before {
		if after[from] != slot {
			t.Errorf("%s: %v moved from slot %d to %d", what, from, slot, after[from])
		}
	}
}

// TestSticky: a client stays with its slot over connections, reloads, the death of
// its worker and a restart of the master, and `handfast slot` knows the slot.
func TestSticky(t *testing.T) {
	t.Parallel()
	const workers = 4
	b := start(t, workers, options{})
	before := b.slotsOf(sources(60), 3)
	used := make(map[int]bool)
	for from, slot := range before {
		used[slot] = true
		var out fdtest.Log
		args := []string{"handfast", "slot", from.String(), "--workers", strconv.Itoa(workers)}
		if run(context.Background(), args, &out, &out) != exitOK || strings.TrimSpace(out.String()) != strconv.Itoa(slot) {
			t.Errorf("%v: its slot is %d: %s", args, slot, &out)
		}
	}
	if len(used) != workers {
		t.Errorf("60 clients use %d of %d slots", len(used), workers)
	}

	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	same(t, "reload", before, b.slotsOf(sources(60), 1))

	kill(t, b.worker(2))
	same(t, "worker killed", before, b.slotsOf(sources(60), 1))

	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	same(t, "master restarted", before, start(t, workers, options{}).slotsOf(sources(60), 1))
}

// TestScale: SIGTTIN adds a slot and moves only clients that go there; SIGTTOU
// removes it and moves them back.
func TestScale(t *testing.T) {
	t.Parallel()
	b := start(t, 3, options{})
	before := b.slotsOf(sources(80), 1)
	b.signal(unix.SIGTTIN)
	b.awaitCount("worker ready", 4)
	after := b.slotsOf(sources(80), 1)
	moved := 0
	for from, slot := range after {
		if slot != before[from] {
			moved++
			if slot != 3 {
				t.Errorf("%v moved from slot %d to the old slot %d", from, before[from], slot)
			}
		}
	}
	if moved < 8 || moved > 36 {
		t.Errorf("%d of 80 clients moved to the fourth slot, want about 20", moved)
	}
	b.signal(unix.SIGTTOU)
	b.awaitCount("number of slots changed", 2)
	same(t, "one slot less", before, b.slotsOf(sources(80), 1))

	for changes := 3; changes <= 4; changes++ {
		b.signal(unix.SIGTTOU)
		b.awaitCount("number of slots changed", changes)
	}
	b.signal(unix.SIGTTOU) // there is one left
	b.await("number of slots not changed")
	if a := b.mustGet(source(0), "/"); a.slot != 0 {
		t.Errorf("slot %d answers when there is one", a.slot)
	}
}

// TestSeed: another seed is another order, the same on each machine.
func TestSeed(t *testing.T) {
	t.Parallel()
	b := start(t, 4, options{flags: []string{"--hash-seed", "7"}})
	slots := b.slotsOf(sources(20), 1)
	for from, slot := range slots {
		var out fdtest.Log
		run(context.Background(), []string{"handfast", "slot", "-n", "4", "--hash-seed=7", from.String()}, &out, &out)
		if strings.TrimSpace(out.String()) != strconv.Itoa(slot) {
			t.Errorf("%v: slot %d, computed %s", from, slot, &out)
		}
	}
}

// TestListen: each kind of address, several at once, and clients of both families
// on a dual-stack listener.
func TestListen(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", ":0"}})
	port := make(map[string]string)
	for _, l := range b.awaitCount("listening", 3) {
		host, p, _ := net.SplitHostPort(l.Address)
		port[host] = p
	}
	for _, c := range []struct{ listener, client string }{
		{"127.0.0.1", "127.0.0.1"},
		{"::1", "::1"},
		{"::", "127.0.0.1"},
		{"::", "::1"},
	} {
		b.addr = net.JoinHostPort(c.client, port[c.listener])
		if a, err := b.get(netip.MustParseAddr(c.client), "/"); err != nil || a.client != c.client {
			t.Errorf("listener %s, client %s: %+v, %v", c.listener, c.client, a, err)
		}
	}
}

// TestInherited: a listener passed by systemd is served (man 3 sd_listen_fds), and
// not passed on to workers.
func TestInherited(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := start(t, 1, options{change: func(cmd *exec.Cmd) {
		cmd.Args = withoutListen(cmd.Args)
		viaShell(cmd, `export LISTEN_PID=$$ LISTEN_FDS=1`)
		cmd.ExtraFiles = []*os.File{file}
	}})
	if b.addr != ln.Addr().String() {
		t.Fatalf("listens on %s, was passed %v", b.addr, ln.Addr())
	}
	a := b.mustGet(source(0), "/env")
	if strings.Contains(a.body, "LISTEN_FDS") {
		t.Error("workers are told of the inherited listener")
	}
	links, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.pid))
	for _, l := range links {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", a.pid, l.Name())); l.Name() == "3" && !strings.HasPrefix(to, "socket:") {
			t.Errorf("descriptor 3 of the worker is %s, not its mailbox", to)
		}
	}
}

// withoutListen removes the --listen that start adds.
func withoutListen(args []string) (rest []string) {
	for i := 0; i < len(args); i++ {
		if args[i] == "--listen" {
			i++
			continue
		}
		rest = append(rest, args[i])
	}
	return rest
}

// viaShell makes a command start from a shell that has run script.
func viaShell(cmd *exec.Cmd, script string) {
	cmd.Args = append([]string{"sh", "-c", script + `; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// TestEnvironment: what a worker learns.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	b := start(t, 3, options{})
	a := b.mustGet(sourceIn(2, 3, 0), "/env")
	for _, want := range []string{"HANDFAST_SLOT=2", "WORKER_ID=2", "HANDFAST_SLOTS=3", "HANDFAST_GENERATION=1", "HANDFAST_ADDRESS=" + b.addr} {
		if !strings.Contains(a.body, want+"\n") {
			t.Errorf("the environment has no %s", want)
		}
	}
	if strings.Contains(a.body, "HANDFAST_FD=") {
		t.Error("the library left HANDFAST_FD to child processes")
	}
}
