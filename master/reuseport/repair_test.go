package reuseport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
)

var dropAll = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// expectPlaces fails unless clients come to the members of the same numbers as their slots.
func expectPlaces(t *testing.T, g *Group, slots int) {
	t.Helper()
	for i := range 40 * slots {
		client := loopback(i)
		got, err := slotOf(t.Context(), client, g.Addr().String())
		if want := g.config.Key(client).Slot(slots); err != nil || got != want {
			t.Fatalf("%s came to slot %d (%v), want %d", client, got, err, want)
		}
	}
}

// TestRepairFilter: a filter that keeps everybody away, and what has no name of that kind but
// the same effect. Row A6.
func TestRepairFilter(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(fd int) error{
		"SO_ATTACH_FILTER": func(fd int) error { return setProgram(fd, unix.SO_ATTACH_FILTER, dropAll) },
		"IP_MINTTL":        func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, 255) },
		"SO_REUSEPORT":     func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0) },
		"listen":           func(fd int) error { return unix.Listen(fd, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
			err := control(g.Listener(1), spoil)
			if errors.Is(err, unix.EPERM) {
				t.Skip("not without a privilege here")
			}
			if err != nil {
				t.Fatal(err)
			}
			found, err := g.Repair()
			if filtered := name == "SO_ATTACH_FILTER"; err != nil || found.Locked != nil || found.Shut != nil || slices.Equal(found.Filtered, []int{1}) != filtered {
				t.Errorf("found %+v (%v)", found, err)
			}
			if found, err := g.Repair(); err != nil || found.Filtered != nil {
				t.Errorf("found %+v (%v) again", found, err)
			}
			if _, limit, err := g.Queue(1); err != nil || limit < 100 {
				t.Errorf("room for %d in the queue (%v)", limit, err)
			}
			acceptAll(t, g, 0, 2, nil)
			if err := resize(g, 3); err != nil {
				t.Fatal(err)
			}
			acceptAll(t, g, 2, 3, nil)
			expectPlaces(t, g, 3)
		})
	}
}

// TestRepairProgram: a program that gives all clients to one member. Row A6.
func TestRepairProgram(t *testing.T) {
	t.Parallel()
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 3)
	acceptAll(t, g, 0, 3, nil)
	err := control(g.Listener(1), func(fd int) error {
		return setProgram(fd, unix.SO_ATTACH_REUSEPORT_CBPF, []bpf.Instruction{bpf.RetConstant{Val: 2}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Repair(); err != nil {
		t.Error(err)
	}
	expectPlaces(t, g, 3)
}

// TestRepairLocked: a filter that was locked cannot be removed, nor keeps it the program from being
// attached; and nobody may get the member again. Row A6.
func TestRepairLocked(t *testing.T) {
	t.Parallel()
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	err := control(g.Listener(0), func(fd int) error {
		return errors.Join(setProgram(fd, unix.SO_ATTACH_FILTER, dropAll), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1))
	})
	if errors.Is(err, unix.EPERM) {
		t.Skip("not without a privilege here")
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if found, err := g.Repair(); err != nil || !slices.Equal(found.Locked, []int{0}) || found.Filtered != nil {
			t.Errorf("found %+v (%v), want 0 locked", found, err)
		}
	}
	if err := g.Clean(0, true); !errors.Is(err, ErrSpoiled) {
		t.Errorf("clean: %v", err)
	}
	if err := g.Clean(1, true); err != nil {
		t.Errorf("clean: %v", err)
	}
	if err := g.Grow(3); err != nil {
		t.Fatal(err)
	}
	if err := g.Steer([]int{2, 1}); err != nil {
		t.Fatal(err)
	}
	acceptAll(t, g, 1, 3, nil)
	for i := range 40 {
		got, err := slotOf(t.Context(), loopback(i), g.Addr().String())
		if want := []int{2, 1}[g.config.Key(loopback(i)).Slot(2)]; err != nil || got != want {
			t.Fatalf("%s came to member %d (%v), want %d", loopback(i), got, err, want)
		}
	}
}

// TestClean: a member is as one that nobody has had, whatever was set. Row A6.
func TestClean(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", ":0"} {
		g := mustListen(t, address, hash.DefaultConfig(), 2)
		describe := func(i int) (all []string) {
			control(g.Listener(i), func(fd int) error {
				for _, list := range [][]setting{numbers, buffers, {{unix.IPPROTO_TCP, unix.TCP_MAXSEG}, {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP}, {unix.SOL_SOCKET, soBufLock}}} {
					for _, o := range list {
						value, err := unix.GetsockoptInt(fd, o.level, o.option)
						if o.level == unix.IPPROTO_TCP && o.option == unix.TCP_WINDOW_CLAMP && value == noClamp {
							value = 0 // which means the same
						}
						all = append(all, fmt.Sprint(o, value, err))
					}
				}
				for _, o := range texts {
					value, err := unix.GetsockoptString(fd, o.level, o.option)
					all = append(all, fmt.Sprint(o, value, err))
				}
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				linger, lingerErr := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_LINGER)
				all = append(all, fmt.Sprint("flags ", flags, err), fmt.Sprint("linger ", uint32(linger), lingerErr))
				return nil
			})
			return all
		}
		set := 0
		control(g.Listener(1), func(fd int) error {
			for _, o := range numbers {
				for _, value := range []int{0, 1, 2, 10, 64, 1024} {
					if unix.SetsockoptInt(fd, o.level, o.option, value) == nil {
						set++
					}
				}
			}
			for _, o := range buffers {
				unix.SetsockoptInt(fd, o.level, o.option, 5000)
				unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 3000)
			}
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 500)
			unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 60})
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
			unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_ASYNC)
			return nil
		})
		if slices.Equal(describe(0), describe(1)) || set < 50 {
			t.Fatalf("%s: nothing was set", address)
		}
		if err := g.Clean(1, false); err != nil {
			t.Error(err)
		}
		is, want := describe(1), describe(0)
		for i := range want {
			if is[i] != want[i] {
				t.Errorf("%s: is %s, want %s", address, is[i], want[i])
			}
		}
	}
}

// TestStrangers: a socket of another process in the group gets nobody, wherever it stands when
// members are opened and when it leaves, and is told of once, with its process. Row D3.
func TestStrangers(t *testing.T) {
	t.Parallel()
	g := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
	join := func() net.Listener {
		t.Helper()
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return sock.ControlRaw(raw, share) }}
		ln, err := config.Listen(context.Background(), "tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(conn, 99)
				conn.Close()
			}
		}()
		return ln
	}
	repair := func(what string, joined int) {
		t.Helper()
		found, err := g.Repair()
		if err != nil || len(found.Joined) != joined || found.Shut != nil {
			t.Errorf("%s: %+v (%v), want %d who have joined", what, found, err, joined)
		}
		for _, s := range found.Joined {
			if !slices.ContainsFunc(s.Owners(), func(o Owner) bool { return o.PID == os.Getpid() && strings.HasPrefix(o.Command, os.Args[0]) }) {
				t.Errorf("%s: owned by %v", what, s.Owners())
			}
		}
	}
	acceptAll(t, g, 0, 2, nil)
	expectPlaces(t, g, 2)
	first := join()
	if err := resize(g, 4); err != nil { // before anybody has looked
		t.Fatal(err)
	}
	acceptAll(t, g, 2, 4, nil)
	expectPlaces(t, g, 4)
	repair("the first", 1)
	repair("again", 0)
	second := join()
	repair("the second", 1)
	expectPlaces(t, g, 4)
	first.Close() // the second one takes its place
	repair("the first has left", 0)
	if err := resize(g, 5); err != nil {
		t.Fatal(err)
	}
	acceptAll(t, g, 4, 5, nil)
	expectPlaces(t, g, 5)
	second.Close() // a member takes its place
	repair("the second has left", 0)
	expectPlaces(t, g, 5)

	join()
	if err := g.StopHandshakes(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if slot, err := slotOf(ctx, loopback(1), g.Addr().String()); err == nil {
		t.Errorf("at the end a client comes to %d", slot)
	}
}

// TestLeave: what becomes of places.
func TestLeave(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		sockets, gone, left []uint64
		certain             bool
	}{
		{[]uint64{1, 2, 3}, nil, []uint64{1, 2, 3}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{2}, []uint64{1, 4, 3}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{4}, []uint64{1, 2, 3}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{3, 4}, []uint64{1, 2}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{4, 3}, []uint64{1, 2}, true},
		{[]uint64{1, 2, 3, 4}, []uint64{2, 3}, []uint64{1, 4}, false},
		{[]uint64{1, 2}, []uint64{9}, []uint64{1, 2}, true},
	} {
		left, certain := afterLeaving(tt.sockets, tt.gone)
		if !slices.Equal(left, tt.left) || certain != tt.certain {
			t.Errorf("%v without %v: %v, certain %v; want %v, %v", tt.sockets, tt.gone, left, certain, tt.left, tt.certain)
		}
	}
}

// BenchmarkRepair is what a look costs.
func BenchmarkRepair(b *testing.B) {
	for _, slots := range []int{2, 8, 64, 128} {
		b.Run(fmt.Sprint(slots), func(b *testing.B) {
			g, err := Listen(b.Context(), "127.0.0.1:0", hash.DefaultConfig(), slots)
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			for b.Loop() {
				if _, err := g.Repair(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSteer is what it costs to lead a slot's clients elsewhere.
func BenchmarkSteer(b *testing.B) {
	g, err := Listen(b.Context(), "127.0.0.1:0", hash.DefaultConfig(), 8)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	for b.Loop() {
		if err := g.Steer(inOrder(8)); err != nil {
			b.Fatal(err)
		}
	}
}
