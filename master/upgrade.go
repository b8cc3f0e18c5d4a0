package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
	"github.com/handfast/handfast/master/unixsocket"
)

// part is where a bundle has what a Master saves.
var part = reexec.Part{Name: "master", Version: 1}

// countsPart is where a bundle has what counts, by the kernel's route.
var countsPart = reexec.Part{Name: "counts", Version: 1}

// Why a Master's program is not replaced.
var (
	errUpgrading = errors.New("master: another upgrade is in progress")
	errStops     = errors.New("master: stopping")
)

// Upgrade is the latest try to replace the program, and how often that was done.
type Upgrade struct {
	Count int       // programs that have taken the place of another's since the master was started
	At    time.Time // when this one did, or the try has failed; zero: there was none
	From  string    // version of the one before
	Err   error     // why the latest try has failed; nil: it did not
}

// saved is what the next program needs to go on.
type saved struct {
	Link        LinkKind
	Started     time.Time
	Upgrades    int
	Stats       balancer.Stats
	Counts      []balancer.Counts        // by slot
	Parked      []balancer.SavedParked   // none in a dry run
	Addresses   []netip.AddrPort         // that connections may have come to, which may be handed back
	Names       []string                 `json:",omitempty"` // likewise, of Unix sockets
	Listeners   []balancer.SavedListener // that the master accepts from
	KernelRoute *kernelroute.Saved       `json:"Steered"` // or that the kernel gives clients to; under the name that earlier programs leave
}

// MarshalText returns the link's word.
func (k LinkKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText fails if the text is the word of no link.
func (k *LinkKind) UnmarshalText(text []byte) error {
	for kind := range rows {
		if rows[kind].name == string(text) {
			*k = LinkKind(kind)
			return nil
		}
	}
	return fmt.Errorf("master: %q is no link to a worker", text)
}

// Replace has another program take the place of this one, with everything that is open: first it
// is tried, then before is called, and then it is run; Replace returns only if one of that fails,
// and then this program goes on as if nothing had happened. save puts more into the bundle, each time.
func (m *Master) Replace(ctx context.Context, program reexec.Program, save func(*reexec.Bundle) error, before func()) (err error) {
	if !m.replacing.CompareAndSwap(false, true) {
		return errUpgrading
	}
	defer m.replacing.Store(false)
	latest := *m.upgraded.Load()
	latest.Err = nil
	m.upgraded.Store(&latest)
	defer func() {
		now := latest
		now.At, now.Err = time.Now(), err
		m.upgraded.Store(&now)
	}()
	var dryRun *reexec.DryRun
	err = m.supervisor.Quiesce(false, func() error {
		bundle, err := m.save(save, false)
		if err == nil {
			dryRun, err = bundle.DryRun(program)
		}
		return err
	})
	if err == nil {
		err = dryRun.Wait(ctx)
	}
	if err != nil {
		return err
	}
	before()
	return m.supervisor.Quiesce(true, func() error {
		bundle, err := m.save(save, true)
		switch {
		case err != nil:
			return err
		case m.isStopping(): // in the meantime: the next program would not know
			return errStops
		}
		return bundle.Exec(program)
	})
}

// save makes a bundle of everything. save puts more into it, and final is as for supervisor.Quiesce.
func (m *Master) save(save func(*reexec.Bundle) error, final bool) (*reexec.Bundle, error) {
	if m.isStopping() {
		return nil, errStops
	}
	b := reexec.NewBundle(m.version)
	if !final {
		b = reexec.NewDryRun(m.version)
	}
	state := saved{
		Link:     m.link,
		Started:  m.started,
		Upgrades: m.upgraded.Load().Count,
		Stats:    m.Stats(),
	}
	state.Addresses, state.Names = m.balancer.Addresses(), m.balancer.Names()
	state.Counts = m.balancer.Table().AllCounts()
	m.route.save(b, &state)
	err := m.supervisor.Save(b) // which may park what workers give back
	if final {
		for _, of := range m.route.balancers() {
			state.Parked = append(state.Parked, of.SaveParked(b)...)
		}
	}
	if err == nil {
		err = m.common.Save(b)
	}
	if err == nil {
		err = b.Put(part, state)
	}
	if err == nil && m.names != nil {
		err = b.Put(namesPart, m.names.save())
	}
	if counts := m.route.saveCounts(b); err == nil && counts != nil {
		err = b.Put(countsPart, counts)
	}
	if err == nil {
		err = save(b)
	}
	return b, err
}

// Adopt takes over from the program before: listeners, and workers with their links. Listeners and
// Groups are set from the bundle, and belong to the caller until New.
func (c *Config) Adopt(b *reexec.Bundle) (err error) {
	c.resume = new(saved)
	if err := b.Get(part, c.resume); err != nil {
		return err
	}
	if b.Has(namesPart) { // also if no session is to name a worker any more
		c.names = new(savedNames)
		if err := b.Get(namesPart, c.names); err != nil {
			return err
		}
	}
	c.Supervisor.Resume = b
	for _, ln := range c.resume.Listeners {
		file, err := b.Take(ln.FD, "listener")
		if err != nil {
			return err
		}
		listener, err := adoptListener(file, ln, b.IsDryRun())
		if err != nil {
			return fmt.Errorf("master: %w", err)
		}
		c.Listeners = append(c.Listeners, listener)
	}
	if b.Has(countsPart) {
		c.counts = new(kernelroute.SavedCounts)
		if err := b.Get(countsPart, c.counts); err != nil {
			return err
		}
	}
	if c.resume.KernelRoute != nil {
		c.Groups, err = c.resume.KernelRoute.Restore(b, c.Balancer.Clients.Hash, c.counts, c.Programs)
	}
	return err
}

// adoptListener takes ownership of file. A dry run leaves a Unix socket's name alone.
func adoptListener(file *os.File, saved balancer.SavedListener, dryRun bool) (net.Listener, error) {
	if saved.Path != "" {
		return unixsocket.Adopt(file, saved.Path, !saved.Stays && !dryRun)
	}
	defer file.Close() // the listener is a duplicate
	return net.FileListener(file)
}

// Adopted returns how the workers of the program before get connections, and whether the kernel
// gives clients to slots. Call it after Adopt.
func (c *Config) Adopted() (link LinkKind, kernel bool) {
	return c.resume.Link, c.resume.KernelRoute != nil
}

// Retire has the master accept what waits at an address of the program before, and then no more.
// Call it after Adopt.
func (c *Config) Retire(addr string) {
	for i, ln := range c.Listeners {
		if ln.Addr().String() == addr {
			c.retired = append(c.retired, ln)
			c.Listeners = slices.Delete(c.Listeners, i, i+1)
			return
		}
	}
}

// restoreLink makes the link of a worker of the program before.
func (m *Master) restoreLink(b *reexec.Bundle) func(supervisor.Seat, int, json.RawMessage) (supervisor.Link, error) {
	return func(seat supervisor.Seat, pid int, state json.RawMessage) (supervisor.Link, error) {
		if m.kind.restore == nil {
			return nil, fmt.Errorf("master: workers of link %v cannot be kept", m.link)
		}
		return m.route.reopen(pid, func(l *kernelroute.Lease) (*workerLink, error) {
			link, err := m.kind.made(m.kind.restore(m, seat, l, b, state))
			if err == nil {
				link.lease = l
			}
			if err == nil {
				m.names.reopen(link, pid)
			}
			return link, err
		})
	}
}

// resume goes on with what the program before has counted and parked.
func (m *Master) resume(state *saved, b *reexec.Bundle) error {
	m.started = state.Started
	m.upgraded.Store(&Upgrade{Count: state.Upgrades + 1, At: time.Now(), From: b.Version})
	m.balancer.RestoreStats(state.Stats)
	for _, p := range state.Parked {
		if err := b.TakeFD(p.FD); err != nil {
			return err
		}
	}
	m.parked = state.Parked
	m.balancer.RestoreAddresses(state.Addresses)
	m.balancer.RestoreNames(state.Names)
	m.balancer.Table().RestoreCounts(state.Counts)
	return nil
}
