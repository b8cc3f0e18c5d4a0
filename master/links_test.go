package master

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// Each row is whole: it has a name of its own, a route, and what the log is to say.
func TestRows(t *testing.T) {
	var names []string
	for i, r := range rows {
		kind := LinkKind(i)
		switch {
		case r.name == "" || slices.Contains(names, r.name):
			t.Errorf("%d: name %q", i, r.name)
		case kind.String() != r.name || kind.row() != &rows[i]:
			t.Errorf("%s: %v", r.name, kind)
		case !r.connections && !r.listeners:
			t.Errorf("%s can be given nothing", r.name)
		case kind.TakesConnections() != r.connections, kind.TakesListeners() != r.listeners, kind.Follows() != r.follows, kind.Foreign() != r.foreign:
			t.Errorf("%s is said to be another", r.name)
		case r.open == nil:
			t.Errorf("%s cannot be opened", r.name)
		case (r.waitsFor == "") != (r.notReady == "") || r.listeners && r.sharing == "":
			t.Errorf("%s: the log has no remedy", r.name)
		case r.follows && !r.binds || r.anywhere && !r.binds || r.blocking && !r.listeners:
			t.Errorf("%s contradicts itself", r.name)
		}
		names = append(names, r.name)
		text, err := kind.MarshalText()
		var back LinkKind
		if err == nil {
			err = back.UnmarshalText(text)
		}
		if err != nil || back != kind {
			t.Errorf("%s as text: %q, %v, %v", r.name, text, back, err)
		}
	}
	if err := new(LinkKind).UnmarshalText([]byte("telepathy")); err == nil || !strings.Contains(err.Error(), "telepathy") {
		t.Error(err)
	}
}

// What a link can be asked is what its kind can tell, and no more.
func TestLinks(t *testing.T) {
	fdtest.NoLeaks(t)
	somewhere := netip.MustParseAddrPort("127.0.0.1:80")
	for kind, want := range map[LinkKind]string{
		LinkNative:     "worker accepts reports",
		LinkNode:       "worker accepts served",
		LinkActivation: "accepts lost",
		LinkAny:        "accepts served lost asked",
		LinkInject:     "worker served lost asked",
	} {
		cfg, _, _ := newConfig(t)
		cfg.Link = kind
		if kind.TakesConnections() {
			cfg.Listeners = []net.Listener{listen(t)}
		} else {
			cfg.Groups = append(cfg.Groups, group(t))
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		m.route.Resize(1)
		opened, err := m.openLink(supervisor.Seat{Slots: 1, Generation: 1})
		if err != nil {
			t.Fatal(err)
		}
		link := known(opened)
		var can []string
		for _, ability := range []struct {
			name string
			has  bool
		}{
			{"worker", link.worker != nil}, {"accepts", link.accepts != nil}, {"served", link.served != nil},
			{"lost", link.lost != nil}, {"asked", link.asked != nil}, {"reports", link.reports != nil},
		} {
			if ability.has {
				can = append(can, ability.name)
			}
		}
		if got := strings.Join(can, " "); got != want {
			t.Errorf("%v: %s, want %s", kind, got, want)
		}
		if accepts := link.Accepts(somewhere); accepts != (kind == LinkActivation) || link.isServed() || (link.Worker() != nil) != kind.TakesConnections() {
			t.Errorf("%v: accepts %v, served %v, worker %v, before it is started", kind, accepts, link.isServed(), link.Worker())
		}
		if !link.Ping() {
			t.Errorf("%v: does not answer before it is started", kind)
		}
		if link.DrainsGroup() != kind.Foreign() {
			t.Errorf("%v: foreign: %v, drains its group: %v", kind, kind.Foreign(), link.DrainsGroup())
		}
		if m.kind.restore == nil {
			if _, err := link.Save(reexec.NewBundle("")); !errors.Is(err, supervisor.ErrNotKept) {
				t.Errorf("%v: saved, %v", kind, err)
			}
			if _, err := m.restoreLink(nil)(supervisor.Seat{}, 1, nil); err == nil {
				t.Errorf("%v: restored", kind)
			}
		}
		link.Close()
		ctx := t.Context()
		m.balancer.Shutdown(ctx)
		m.common.Stop()
		m.route.close(ctx)
		m.common.Close()
		for _, ln := range cfg.Listeners {
			ln.Close()
		}
	}
}

// A link that cannot be made, of a new worker or of one of the program before, is none.
func TestLinkFails(t *testing.T) {
	fdtest.NoLeaks(t)
	for _, kernel := range []bool{false, true} {
		cfg, _, _ := newConfig(t)
		if kernel {
			cfg.Groups = append(cfg.Groups, group(t))
		} else {
			cfg.Listeners = []net.Listener{listen(t)}
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		fails := func(l *kernelroute.Lease) (*workerLink, error) {
			if (l != nil) != kernel {
				t.Errorf("kernel's route: %v, listeners: %v", kernel, l)
			}
			return nil, broken
		}
		if link, err := m.route.open(supervisor.Seat{}, fails); link != nil || err != broken {
			t.Errorf("kernel's route: %v: %v, %v", kernel, link, err)
		}
		link, err := m.route.reopen(1, fails)
		if link != nil || err == nil || !kernel && err != broken {
			t.Errorf("kernel's route: %v: %v, %v", kernel, link, err)
		}
		for i := range rows {
			if restore := rows[i].restore; restore != nil && LinkKind(i) == LinkNative {
				if link, err := restore(m, supervisor.Seat{}, nil, reexec.NewBundle(""), json.RawMessage("{}")); link != nil || err == nil {
					t.Errorf("%s: %v, %v", rows[i].name, link, err)
				}
			}
		}
		m.route.close(t.Context())
		for _, ln := range cfg.Listeners {
			ln.Close()
		}
	}
}

// A link that is not of ours can tell nothing.
func TestKnown(t *testing.T) {
	type unready struct{ supervisor.Link }
	for _, link := range []supervisor.Link{nil, unready{}} {
		l := known(link)
		if l.Worker() != nil || l.Accepts(netip.AddrPort{}) || l.isServed() || fmt.Sprint(l.Link) != fmt.Sprint(link) {
			t.Errorf("%+v", l)
		}
	}
	l := &workerLink{}
	if known(l) != l {
		t.Error("another link")
	}
	var nobody nothing
	nobody.Stop()
	nobody.Close()
	if err := errors.Join(nobody.Save(nil), nobody.Restore(nil)); err != nil {
		t.Error(err)
	}
}
