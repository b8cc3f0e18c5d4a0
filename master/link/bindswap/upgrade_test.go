package bindswap

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/link/foreigntest"
	"github.com/handfast/handfast/master/reexec"
)

// upgrade closes the link, as the end of its program does, and restores it.
func (a *acting) upgrade(cfg Config) *Link {
	t := a.T
	t.Helper()
	b := reexec.NewBundle("this")
	s := a.save(b)
	fd, err := sock.Duplicate(a.Notifs.File())
	fdtest.Check(t, err)
	s.Notifs = b.Keep(fd)
	state, err := reexec.Seal(part, s)
	fdtest.Check(t, err)
	a.Close()
	cfg.Logger = foreigntest.Logger(t)
	l, err := Restore(b, cfg, state)
	fdtest.Check(t, err)
	t.Cleanup(l.Close)
	return l
}

// TestUpgrade: the next program knows which listeners the worker has and whether it was told to finish, and answers
// it, also a call that came before there was anybody to answer.
func TestUpgrade(t *testing.T) {
	for _, told := range []bool{false, true} {
		t.Run(fmt.Sprint("told ", told), func(t *testing.T) {
			one, port := listen(t, "127.0.0.1", 0)
			two, _ := listen(t, "127.0.0.2", port)
			cfg := Config{Listeners: []*os.File{one, two}}
			a := act(t, cfg, port)
			a.Does("s, u = socket(), socket()", "None")
			a.Does("s.bind(('127.0.0.1', port))", "None")
			if told {
				a.SetTold()
			}
			before := a.save(reexec.NewBundle("this"))

			l := a.upgrade(cfg)
			if !fdtest.IsClosed(l.Ready()) || fdtest.IsClosed(l.Left()) {
				t.Error("it is not ready, or has left")
			}
			if l.Told() != told {
				t.Errorf("told %v, want %v", l.Told(), told)
			}
			for last, want := range map[byte]bool{1: true, 2: false} {
				at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), uint16(port))
				if l.Accepts(at) != want {
					t.Errorf("accepts on %v: %v, want %v", at, !want, want)
				}
			}
			if roots := l.Roots(); len(roots) == 0 || roots[0] != a.Cmd.Process.Pid {
				t.Errorf("processes %v, want %d", roots, a.Cmd.Process.Pid)
			}
			// It saves the same in turn, but for the descriptor.
			after := l.save(reexec.NewBundle("this"))
			if after.Notifs = before.Notifs; !reflect.DeepEqual(after, before) {
				t.Errorf("saves %+v, then %+v", before, after)
			}

			const bind = "u.bind(('127.0.0.2', port))"
			a.Begin(bind)
			l.Resume()
			a.Ends(bind, "None")
			a.has("u", two)
		})
	}
}

// TestRestoreFails: without leaving anything open.
func TestRestoreFails(t *testing.T) {
	file, _ := listen(t, "127.0.0.1", 0)
	cfg := Config{Listeners: []*os.File{file}}
	other, err := reexec.Seal(reexec.Part{Name: part.Name, Version: part.Version + 1}, saved{})
	fdtest.Check(t, err)
	notKept, err := reexec.Seal(part, saved{})
	fdtest.Check(t, err)
	for name, state := range map[string][]byte{"no JSON": []byte("{"), "another version": other, "a descriptor that was not kept": notKept} {
		if _, err := Restore(reexec.NewBundle("this"), cfg, state); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
