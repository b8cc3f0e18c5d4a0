package kernelroute

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/master/balancer"
)

// both is a world whose only group is one for both families, beside which one for IPv4 alone can be opened.
func both(t *testing.T, f func(w *world, four *fakeGroup)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, foreign, 0)
		six := w.group("A", "[::]:80", 2)
		w.makeRoute(foreign, []Group{six})
		w.Resize(2)
		six.four = w.group("B", "0.0.0.0:80", 2)
		f(w, six.four)
	})
}

// TestOnlyIPv4: the first worker that listens on IPv4 alone has handfast do so for all slots. The listeners for both
// families go away when handshakes are over, and connections that wait there are refused.
func TestOnlyIPv4(t *testing.T) {
	both(t, func(w *world, four *fakeGroup) {
		six := w.all[0]
		a, b := w.start("a", 0, false), w.start("b", 1, false)
		for range 2 {
			if ln, err := a.OnlyIPv4(a.Files()[0]); err != nil || ln != four.members[0] {
				t.Fatalf("a gets %v, %v", ln, err)
			}
		}
		if len(w.groups) != 2 || w.logged("listening", "address=0.0.0.0:80", "workers listen on IPv4 only") != 1 {
			t.Errorf("%d groups, and not said: %s", len(w.groups), w.log)
		}
		six.waits(1, 3)
		time.Sleep(balancer.LastGrace)
		w.notes("handshakes are over", "0.1 refuser takes 3 at A1", "0.1 A closes")
		if w.logged("not listening on IPv6 any more") != 1 || len(w.Addresses()) != 1 {
			t.Errorf("listens at %v: %s", w.Addresses(), w.log)
		}
		// b was started while the other group was there, and binds only now.
		if ln, err := b.OnlyIPv4(six.members[1]); err != nil || ln != four.members[1] {
			t.Errorf("b gets %v, %v", ln, err)
		}
		if _, err := b.OnlyIPv4(os.Stdin); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a file of somebody else: %v", err)
		}
	})
}

// TestOnlyIPv4Beside: while a worker accepts on both families, that group stays.
func TestOnlyIPv4Beside(t *testing.T) {
	both(t, func(w *world, _ *fakeGroup) {
		w.start("a", 0, true)
		b := w.start("b", 1, false)
		if _, err := b.OnlyIPv4(b.Files()[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.notes("it stays")
		if len(w.groups) != 2 {
			t.Errorf("%d groups", len(w.groups))
		}
	})
}

// TestOnlyIPv4TooLate: when workers have served on both families, those of a later generation have to do so, too.
func TestOnlyIPv4TooLate(t *testing.T) {
	both(t, func(w *world, _ *fakeGroup) {
		w.start("a", 0, true)
		w.fill("a")
		b := w.start("b", 1, false)
		if _, err := b.OnlyIPv4(b.Files()[0]); !errors.Is(err, errFamilies) {
			t.Error(err)
		}
	})
}

// TestOnlyIPv4Fails: with the group's own error, or because it is none of both families. Nothing changes, and it can be
// tried again.
func TestOnlyIPv4Fails(t *testing.T) {
	both(t, func(w *world, four *fakeGroup) {
		a := w.start("a", 0, false)
		inUse := errors.New("address already in use")
		for _, err := range []error{inUse, nil} {
			w.all[0].four, w.all[0].growErr = nil, err
			want := err
			if want == nil {
				want = net.ErrClosed
			}
			if _, err := a.OnlyIPv4(a.Files()[0]); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		w.all[0].four = four
		if _, err := a.OnlyIPv4(a.Files()[0]); err != nil || len(w.groups) != 2 {
			t.Errorf("%d groups, %v", len(w.groups), err)
		}
	})
}

// TestRetireAfterClose: at the end nothing is left to a timer.
func TestRetireAfterClose(t *testing.T) {
	both(t, func(w *world, _ *fakeGroup) {
		a := w.start("a", 0, false)
		if _, err := a.OnlyIPv4(a.Files()[0]); err != nil {
			t.Fatal(err)
		}
		w.exits("a")
		w.Close(t.Context())
		w.notes("closed", "0 refuser shuts down", "0 A closes", "0 B closes")
		time.Sleep(time.Hour)
		w.notes("nothing more")
	})
}

// following is a world that listens nowhere yet.
func following(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		kind := foreign
		kind.Follows = true
		w := newWorld(t, foreign, 0)
		w.makeRoute(kind, nil)
		w.opened = func(address string) (Group, error) {
			at := address
			if strings.HasPrefix(at, ":") {
				at = "[::]" + at
			}
			w.journal.note("listens at %s", address)
			return w.group(string(rune('A'+len(w.all))), at, len(w.berths)), nil
		}
		w.Resize(2)
		f(w)
	})
}

// TestFollow: handfast listens where the first workers do, for all slots, and each gets its own listener.
func TestFollow(t *testing.T) {
	local := netip.MustParseAddrPort("127.0.0.1:0")
	following(t, func(w *world) {
		a := w.start("a", 0, true)
		if !a.Follows() || len(a.Files()) != 0 {
			t.Fatalf("follows %v, %d listeners", a.Follows(), len(a.Files()))
		}
		ln, err := a.Follow(local, false)
		if err != nil || ln != w.all[0].members[0] {
			t.Fatal(ln, err)
		}
		b := w.start("b", 1, true)
		if ln, err := b.Follow(local, false); err != nil || ln != w.all[0].members[1] {
			t.Error(ln, err)
		}
		w.notes("once for both", "0 listens at 127.0.0.1:0")
		if w.logged("listening", "--listen was left out") != 1 {
			t.Errorf("not said: %s", w.log)
		}
		w.fill("a")
		if ln, err := b.Follow(netip.MustParseAddrPort("127.0.0.2:0"), false); ln != nil || err != nil {
			t.Errorf("what a later worker binds elsewhere is its own: %v, %v", ln, err)
		}
		if ln, err := b.Follow(local, false); err != nil || ln != w.all[0].members[1] {
			t.Errorf("where handfast listens it is not: %v, %v", ln, err)
		}
	})
}

// TestFollowFamilies: what a worker binds to all addresses is of both families, unless it says otherwise or handfast
// listens on IPv4 there.
func TestFollowFamilies(t *testing.T) {
	four, six := netip.MustParseAddrPort("0.0.0.0:0"), netip.MustParseAddrPort("[::]:0")
	for name, tt := range map[string]struct {
		before   []netip.AddrPort
		onlyIPv6 bool
		want     string
	}{
		"both":          {nil, false, "0 listens at :0"},
		"IPv6 alone":    {nil, true, "0 listens at [::]:0"},
		"IPv4 is there": {[]netip.AddrPort{four}, false, "0 listens at [::]:0"},
	} {
		t.Run(name, func(t *testing.T) {
			following(t, func(w *world) {
				a := w.start("a", 0, true)
				for _, at := range tt.before {
					if _, err := a.Follow(at, false); err != nil {
						t.Fatal(err)
					}
					w.notes("before", "0 listens at 0.0.0.0:0")
				}
				if _, err := a.Follow(six, tt.onlyIPv6); err != nil {
					if errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "address family not supported") {
						t.Skip(err)
					}
					t.Fatal(err)
				}
				w.notes("then", tt.want)
			})
		})
	}
}

// TestFollowFails: where the worker could not listen by itself handfast does not do it for it, and an error of listening
// is the worker's.
func TestFollowFails(t *testing.T) {
	following(t, func(w *world) {
		a := w.start("a", 0, true)
		nowhere := netip.MustParseAddrPort("192.0.2.1:80") // of nobody (RFC 5737)
		if _, err := a.Follow(nowhere, false); err == nil || !strings.Contains(err.Error(), "--listen") {
			t.Errorf("an address that is not ours: %v", err)
		}
		w.opened = nil
		if _, err := a.Follow(netip.MustParseAddrPort("127.0.0.1:0"), false); err == nil || len(w.groups) != 0 {
			t.Errorf("%d groups, %v", len(w.groups), err)
		}
	})
}
