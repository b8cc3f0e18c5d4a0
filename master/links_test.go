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
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// abilities are what workers of each kind can do, as its row says it, and what their link can be asked.
var abilities = map[LinkKind]struct{ row, link string }{
	LinkNative:     {"connections listeners reports handsBack", "worker accepts handsBack reports"},
	LinkNode:       {"connections listeners clustered handsBack", "worker accepts served handsBack"},
	LinkActivation: {"listeners blocking foreign", "accepts lost"},
	LinkAny:        {"listeners blocking follows foreign binds", "accepts served lost asked"},
	LinkInject:     {"connections foreign binds anywhere", "worker served lost asked"},
}

// ability is one of them.
type ability struct {
	name string
	has  bool
}

// namesOf are the names of those that there are.
func namesOf(all ...ability) string {
	var names []string
	for _, a := range all {
		if a.has {
			names = append(names, a.name)
		}
	}
	return strings.Join(names, " ")
}

// Each row is whole: it has a name of its own, a route, and what the log is to say.
func TestRows(t *testing.T) {
	var names, flags []string
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
		case kind.Reports() != r.reports, kind.Clustered() != r.clustered, kind.HandsBack() != r.handsBack, kind.Flag() != r.flag, kind.Help() != r.help:
			t.Errorf("%s is said to be another", r.name)
		case r.flag == "" || (r.help == "") != slices.Contains(flags, r.flag):
			t.Errorf("%s: --worker-link %q, help %q", r.name, r.flag, r.help)
		case r.open == nil:
			t.Errorf("%s cannot be opened", r.name)
		case r.waitsFor == "" || r.notReady == "" || r.listeners && r.sharing == "":
			t.Errorf("%s: the log has no remedy", r.name)
		case r.follows && !r.binds || r.anywhere && !r.binds || r.blocking && !r.listeners:
			t.Errorf("%s contradicts itself", r.name)
		}
		names, flags = append(names, r.name), append(flags, r.flag)
		can := namesOf(ability{"connections", r.connections}, ability{"listeners", r.listeners}, ability{"blocking", r.blocking},
			ability{"follows", r.follows}, ability{"foreign", r.foreign}, ability{"binds", r.binds}, ability{"anywhere", r.anywhere},
			ability{"reports", r.reports}, ability{"clustered", r.clustered}, ability{"handsBack", r.handsBack})
		if want, known := abilities[kind]; !known || can != want.row {
			t.Errorf("%s can: %s, want %s", r.name, can, want.row)
		}
		text, err := kind.MarshalText()
		var back LinkKind
		if err == nil {
			err = back.UnmarshalText(text)
		}
		if err != nil || back != kind {
			t.Errorf("%s as text: %q, %v, %v", r.name, text, back, err)
		}
	}
	if n := len(LinkKinds()); n != len(rows) || n != len(abilities) {
		t.Errorf("%d kinds, %d rows, abilities of %d", n, len(rows), len(abilities))
	}
	if err := new(LinkKind).UnmarshalText([]byte("telepathy")); err == nil || !strings.Contains(err.Error(), "telepathy") {
		t.Error(err)
	}
}

// TestLinks: a link can be asked what its kind can tell, and no more.
func TestLinks(t *testing.T) {
	fdtest.NoLeaks(t)
	somewhere := netip.MustParseAddrPort("127.0.0.1:80")
	for i := range rows {
		kind := LinkKind(i)
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
		can := namesOf(ability{"worker", link.worker != nil}, ability{"accepts", link.accepts != nil}, ability{"served", link.served != nil},
			ability{"lost", link.lost != nil}, ability{"asked", link.asked != nil}, ability{"handsBack", link.handsBack != nil}, ability{"reports", link.reports != nil})
		if want, known := abilities[kind]; !known || can != want.link {
			t.Errorf("%v: %s, want %s", kind, can, want.link)
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

// closed counts how often it was closed.
type closed struct {
	supervisor.Link
	times int
}

func (c *closed) Close() { c.times++ }

// A link that is not as its row says is none, whichever of them has too much or too little.
func TestLinkUnlikeItsRow(t *testing.T) {
	accepts := func(netip.AddrPort) bool { return true }
	lost := func(supervisor.Exit) bool { return false }
	asked := func() []foreign.OwnAddress { return nil }
	for _, c := range []struct {
		what string
		row  row
		has  workerLink
	}{
		{"take connections", row{connections: true}, workerLink{worker: new(nodeipc.Link)}},
		{"accept from listeners", row{listeners: true}, workerLink{accepts: accepts}},
		{"bind the port", row{binds: true}, workerLink{asked: asked}},
		{"are foreign", row{foreign: true}, workerLink{lost: lost}},
		{"report", row{reports: true}, workerLink{reports: new(mailbox.Mailbox)}},
		{"hand connections back", row{handsBack: true}, workerLink{handsBack: new(nodeipc.Link).HandsBack}},
	} {
		inner := new(closed)
		able, unable := c.has, workerLink{Link: inner}
		able.Link = inner
		if l, err := c.row.made(&able, nil); l != &able || err != nil || inner.times != 0 {
			t.Errorf("%s: %v, %v, closed %d times", c.what, l, err, inner.times)
		}
		for _, err := range []error{second(c.row.made(&unable, nil)), second(new(row).made(&able, nil))} {
			if err == nil || !strings.Contains(err.Error(), c.what) {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		if inner.times != 2 {
			t.Errorf("%s: closed %d times", c.what, inner.times)
		}
	}
	m := &Master{route: &masterRoute{}, kind: &row{
		connections: true,
		open: func(*Master, supervisor.Seat, *kernelroute.Lease) (*workerLink, error) {
			return &workerLink{Link: new(closed)}, nil
		},
		restore: func(*Master, supervisor.Seat, *kernelroute.Lease, *reexec.Bundle, json.RawMessage) (*workerLink, error) {
			return &workerLink{Link: new(closed)}, nil
		},
	}}
	if l, err := m.openLink(supervisor.Seat{}); l != nil || err == nil {
		t.Errorf("opened: %v, %v", l, err)
	}
	if l, err := m.restoreLink(nil)(supervisor.Seat{}, 1, nil); l != nil || err == nil {
		t.Errorf("restored: %v, %v", l, err)
	}
}

func second(_ *workerLink, err error) error { return err }

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
