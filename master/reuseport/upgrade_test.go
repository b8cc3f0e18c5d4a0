package reuseport

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// inherit returns what the next program gets of a group: the same sockets by other descriptors, and what was saved as
// it comes out of JSON.
func inherit(t *testing.T, g *Group) (*reexec.Bundle, Saved) {
	t.Helper()
	text, err := json.Marshal(g.Save(reexec.NewBundle("1")))
	fdtest.Check(t, err)
	var s Saved
	fdtest.Check(t, json.Unmarshal(text, &s))
	b := reexec.NewBundle("1")
	t.Cleanup(b.Close)
	s.Own = duplicate(t, b, s.Own)
	for i, fd := range s.Members {
		s.Members[i] = duplicate(t, b, fd)
	}
	return b, s
}

// inheritCounting is inherit for the program that counts.
func inheritCounting(t *testing.T, g *Group, b *reexec.Bundle) (s *SavedProgram) {
	t.Helper()
	text, err := json.Marshal(g.SaveCounting(reexec.NewBundle("1")))
	fdtest.Check(t, err)
	fdtest.Check(t, json.Unmarshal(text, &s))
	if s != nil {
		s.Program, s.Tables, s.Counts = duplicate(t, b, s.Program), duplicate(t, b, s.Tables), duplicate(t, b, s.Counts)
	}
	return s
}

func duplicate(t *testing.T, b *reexec.Bundle, fd int) int {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	fdtest.Check(t, err)
	return b.Keep(fd)
}

// TestSaveRestore: the next program goes on with the group when this one has closed it: clients come to where they did,
// and it steers, opens, repairs and cleans members as this one would have.
func TestSaveRestore(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			before := mustListen(t, address, hash.DefaultConfig(), 3)
			to := before.Addr().String()
			if before.Addr().IP.IsUnspecified() {
				to = strings.NewReplacer("[::]", "127.0.0.1", "0.0.0.0", "127.0.0.1").Replace(to)
			}
			fdtest.Check(t, before.Steer([]int{2, 0}))
			b, saved := inherit(t, before)
			g, err := Restore(b, saved, hash.DefaultConfig(), inheritCounting(t, before, b), nil)
			fdtest.Check(t, err)
			t.Cleanup(func() { g.Close() })
			fdtest.Check(t, before.Close())
			if g.Members() != 3 || g.Addr().String() != before.Addr().String() || len(g.Addr().IP) != len(before.Addr().IP) {
				t.Errorf("%d members at %v", g.Members(), g.Addr())
			}
			for i := range 3 {
				if err := g.Listener(i).SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
					t.Errorf("member %d is watched by Go's poller: %v", i, err)
				}
				fdtest.Control(t, g.Listener(i), func(fd int) error {
					if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
						t.Errorf("member %d became blocking (%v)", i, err)
					}
					return nil
				})
			}
			if found, err := g.Repair(); err != nil || found.Shut != nil || found.Filtered != nil || found.Locked != nil || found.Joined != nil {
				t.Errorf("found %+v (%v) where nothing is broken", found, err)
			}
			fdtest.Check(t, control(g.Listener(1), func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30) }))
			fdtest.Check(t, g.Clean(1, false))
			fdtest.Check(t, control(g.Listener(1), func(fd int) error {
				if value, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT); value != 0 || err != nil {
					t.Errorf("TCP_DEFER_ACCEPT is %d (%v)", value, err)
				}
				return nil
			}))
			fdtest.Check(t, g.Grow(4))
			acceptAll(t, g, 0, 4, nil)
			expect := func(step string, members []int) {
				t.Helper()
				for i := range 40 {
					client := loopback(i)
					if strings.HasPrefix(to, "[") {
						client = g.Addr().AddrPort().Addr()
					}
					got, err := slotOf(t.Context(), client, to)
					if want := members[g.config.Key(client).Slot(len(members))]; err != nil || got != want {
						t.Fatalf("%s: %s came to member %d (%v), want %d", step, client, got, err, want)
					}
				}
			}
			expect("as before", []int{2, 0})
			fdtest.Check(t, g.Steer([]int{3, 1, 2}))
			expect("steered", []int{3, 1, 2})
		})
	}
}

// TestRestoreOtherHash: until Steer the kernel goes on with the program that is attached, whatever the next program's
// configuration says.
func TestRestoreOtherHash(t *testing.T) {
	config, next := hash.DefaultConfig(), hash.Config{Seed: 4711, IPv4Prefix: 32, IPv6Prefix: 64}
	before := mustListen(t, "127.0.0.1:0", config, 2)
	b, saved := inherit(t, before)
	g, err := Restore(b, saved, next, nil, nil)
	fdtest.Check(t, err)
	t.Cleanup(func() { g.Close() })
	fdtest.Check(t, before.Close())
	acceptAll(t, g, 0, 2, nil)
	for _, c := range []hash.Config{config, next} {
		for i := range 40 {
			got, err := slotOf(t.Context(), loopback(i), g.Addr().String())
			if want := c.Key(loopback(i)).Slot(2); err != nil || got != want {
				t.Fatalf("%+v: %s came to slot %d (%v), want %d", c, loopback(i), got, err, want)
			}
		}
		fdtest.Check(t, g.Steer(inOrder(2)))
	}
}

// TestRestoreNonsense: what cannot be is refused, and nothing stays open.
func TestRestoreNonsense(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, spoil := range map[string]func(*Saved){
		"no address":              func(s *Saved) { s.Addr = nil },
		"no slots":                func(s *Saved) { s.At = nil },
		"too many slots":          func(s *Saved) { s.At = make([]int, MaxSlots+1) },
		"a slot nowhere":          func(s *Saved) { s.At[1] = 2 },
		"a slot before the first": func(s *Saved) { s.At[1] = -1 },
		"no members":              func(s *Saved) { s.Members = nil },
		"places of some only":     func(s *Saved) { s.Sockets = s.Sockets[:2] },
		"a member twice":          func(s *Saved) { s.Members[1] = s.Members[0] },
		"the anchor is a member":  func(s *Saved) { s.Own = s.Members[0] },
		"a place of nobody":       func(s *Saved) { s.Sockets[slices.Index(s.Sockets, s.Sockets[1])] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			before := mustListen(t, "127.0.0.1:0", hash.DefaultConfig(), 2)
			b, saved := inherit(t, before)
			spoil(&saved)
			if g, err := Restore(b, saved, hash.DefaultConfig(), nil, nil); err == nil {
				g.Close()
				t.Error("no error")
			}
			b.Close()
		})
	}
	if _, err := Restore(reexec.NewBundle("1"), Saved{}, hash.Config{IPv4Prefix: 33}, nil, nil); err == nil {
		t.Error("a prefix of 33 bits: no error")
	}
}
