package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/link/activation"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/trap"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// part is where a bundle has what a Master saves.
const part = "master"

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
	Link      LinkKind
	Started   time.Time
	Upgrades  int
	Stats     Stats
	Counts    []savedCounts   // by slot
	Parked    []savedParked   // none in a rehearsal
	Listeners []savedListener // that the master accepts from
	Steered   *savedSteered   // or that the kernel gives clients to
}

type savedListener struct{ FD int }

type savedParked struct {
	fdpass.Handoff
	Parked  time.Time
	Refused bool
}

type savedCounts struct{ HandedOff, Refused, Full uint64 }

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
	var rehearsal *reexec.Rehearsal
	err = m.supervisor.Hold(func() error {
		bundle, err := m.save(save, false)
		if err == nil {
			rehearsal, err = bundle.Rehearse(program)
		}
		return err
	})
	if err == nil {
		err = rehearsal.Wait(ctx)
	}
	if err != nil {
		return err
	}
	before()
	return m.supervisor.Hold(func() error {
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

// save makes a bundle of everything. forGood is as for supervisor.Save.
func (m *Master) save(more func(*reexec.Bundle) error, forGood bool) (*reexec.Bundle, error) {
	if m.isStopping() {
		return nil, errStops
	}
	b := reexec.NewBundle(m.version)
	if !forGood {
		b = reexec.NewRehearsal(m.version)
	}
	state := saved{
		Link:     m.link,
		Started:  m.started,
		Upgrades: m.upgraded.Load().Count,
		Stats:    m.Stats(),
	}
	for _, seat := range m.balancer.table.load() {
		state.Counts = append(state.Counts, savedCounts{seat.counts.handedOff.Load(), seat.counts.refused.Load(), seat.counts.full.Load()})
	}
	balancers := []*Balancer{m.balancer}
	if m.steered != nil {
		state.Steered = m.steered.save(b)
		balancers = append(balancers, m.steered.refuser)
	} else {
		state.Listeners = m.balancer.saveListeners(b)
	}
	err := m.supervisor.Save(b, forGood) // which may park what workers give back
	if forGood {
		for _, balancer := range balancers {
			state.Parked = append(state.Parked, balancer.saveParked(b)...)
		}
	}
	if err == nil && m.primary != nil {
		err = m.primary.Save(b)
	}
	if err == nil {
		err = b.Put(part, state)
	}
	if err == nil {
		err = more(b)
	}
	return b, err
}

func (b *Balancer) saveListeners(bundle *reexec.Bundle) (all []savedListener) {
	b.serving.Lock()
	defer b.serving.Unlock()
	for a := range b.acceptors {
		all = append(all, savedListener{bundle.KeepFile(a.file)})
	}
	return all
}

// saveParked keeps what is parked, or reads its refusal.
func (b *Balancer) saveParked(bundle *reexec.Bundle) (all []savedParked) {
	for _, p := range slices.Concat(b.lot.all(), b.overflow.all()) {
		bundle.Keep(p.FD)
		all = append(all, savedParked{p.Handoff, p.parked, p.refused})
	}
	return all
}

// Adopt takes over from the program before: listeners, and workers with their links. Listeners and
// Groups are set from the bundle, and belong to the caller until New.
func (c *Config) Adopt(b *reexec.Bundle) (err error) {
	c.resume = new(saved)
	if err := b.Get(part, c.resume); err != nil {
		return err
	}
	c.Supervisor.Resume = b
	for _, ln := range c.resume.Listeners {
		file, err := b.Take(ln.FD, "listener")
		if err != nil {
			return err
		}
		listener, err := net.FileListener(file)
		file.Close() // the listener is a duplicate
		if err != nil {
			return fmt.Errorf("master: %w", err)
		}
		c.Listeners = append(c.Listeners, listener)
	}
	if c.resume.Steered != nil {
		c.Groups, err = c.resume.Steered.restore(b, c.Balancer.Clients.Hash)
	}
	return err
}

// Adopted returns how the workers of the program before get connections, and whether the kernel
// gives clients to slots. Call it after Adopt.
func (c *Config) Adopted() (link LinkKind, kernel bool) {
	return c.resume.Link, c.resume.Steered != nil
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
func (m *Master) restoreLink(b *reexec.Bundle) func(supervisor.Seat, int, json.RawMessage) (supervisor.Portable, error) {
	return func(seat supervisor.Seat, pid int, state json.RawMessage) (supervisor.Portable, error) {
		return m.steered.letAgain(pid, func(l *lease) (supervisor.Portable, error) { return m.restoreOne(b, seat, l, state) })
	}
}

func (m *Master) restoreOne(b *reexec.Bundle, seat supervisor.Seat, l *lease, state json.RawMessage) (supervisor.Portable, error) {
	switch m.link {
	case LinkNative:
		return mailbox.Restore(b, state, m.wishes, m.balancer.Readmit)
	case LinkNode:
		return m.primary.RestoreLink(b, seat.Slot, m.own(l), state)
	case LinkActivation:
		return activation.Restore(m.activation(l), state)
	case LinkAny:
		return trap.Restore(b, m.trap(l), state)
	}
	return nil, fmt.Errorf("master: workers of link %v cannot be kept", m.link)
}

// resume goes on with what the program before has counted and parked.
func (m *Master) resume(state *saved, b *reexec.Bundle) error {
	m.started = state.Started
	m.upgraded.Store(&Upgrade{Count: state.Upgrades + 1, At: time.Now(), From: b.Version})
	m.balancer.restoreStats(state.Stats)
	for _, p := range state.Parked {
		if err := b.TakeFD(p.FD); err != nil {
			return err
		}
	}
	m.parked = state.Parked
	if n := len(state.Counts); n > 1 && n <= hash.MaxSlots {
		m.balancer.table.Resize(n)
	}
	for i, seat := range m.balancer.table.load() {
		if i < len(state.Counts) {
			seat.counts.handedOff.Store(state.Counts[i].HandedOff)
			seat.counts.refused.Store(state.Counts[i].Refused)
			seat.counts.full.Store(state.Counts[i].Full)
		}
	}
	return nil
}

func (b *Balancer) restoreStats(s Stats) {
	b.accepted.Store(s.Accepted)
	b.handedOff.Store(s.HandedOff)
	b.takenBack.Store(s.TakenBack)
	b.refused.Store(s.Refused)
	b.gone.Store(s.Gone)
}

// readmitParked parks again what was parked in the program before. Patience begins anew.
func (b *Balancer) readmitParked(conns []savedParked) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	var waiting []arrival
	for _, c := range conns {
		a := arrival{Handoff: c.Handoff, parked: c.Parked}
		if !c.Refused {
			waiting = append(waiting, a)
			continue
		}
		p, err := b.overflow.enter(a, place{slot: noSlot}, maxOverflow)
		if err != nil {
			fdpass.CloseConnections(c.FD)
			continue
		}
		p.refused = true
		go b.linger(p, b.overflow, os.NewFile(uintptr(c.FD), "refused connection"), true)
	}
	for _, a := range b.identify(waiting, b.clients.Buffer()) {
		b.park(a)
	}
}

// savedSteered is what the next program needs to go on with slots that the kernel gives clients to.
type savedSteered struct {
	Groups []savedGroup
	Berths []savedBerth
	At     []int // by slot: the berth that its clients come to
	Served bool
}

type savedGroup struct {
	reuseport.Saved
	IPv4Of int // of which group it is the one for IPv4 alone; -1: of none
}

type savedBerth struct {
	Slot          int
	Leases        []savedLease
	Used, Spoiled bool
	Left          time.Time
}

type savedLease struct{ Slot, PID int }

func (s *steered) save(b *reexec.Bundle) *savedSteered {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := &savedSteered{Served: s.served}
	for _, g := range s.groups {
		entry := savedGroup{Saved: g.Save(b), IPv4Of: -1}
		for of, both := range s.groups {
			if s.ipv4[both] == g {
				entry.IPv4Of = of
			}
		}
		state.Groups = append(state.Groups, entry)
	}
	for _, b := range s.berths {
		entry := savedBerth{Slot: b.slot, Used: b.used, Spoiled: b.spoiled, Left: b.left}
		for _, l := range b.leases {
			entry.Leases = append(entry.Leases, savedLease{l.slot, l.pid})
		}
		state.Berths = append(state.Berths, entry)
	}
	for _, b := range s.at {
		state.At = append(state.At, b.number)
	}
	return state
}

func (s *savedSteered) restore(b *reexec.Bundle, config hash.Config) (groups []*reuseport.Group, err error) {
	for _, entry := range s.Groups {
		g, err := reuseport.Restore(b, entry.Saved, config)
		if err != nil {
			return groups, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// resume puts back what was known of the groups, which newSteered was given.
func (s *steered) resume(state *savedSteered) error {
	n := len(state.Berths)
	if len(state.Groups) == 0 && !s.follows || n == 0 || slices.ContainsFunc(state.Groups, func(g savedGroup) bool { return len(g.Members) != n }) ||
		len(state.At) == 0 || slices.Min(state.At) < 0 || slices.Max(state.At) >= n {
		return fmt.Errorf("master: %d listeners for slots at %v: that cannot be", n, state.At)
	}
	s.served = state.Served
	for i, entry := range state.Groups {
		if of := entry.IPv4Of; of >= 0 && of < len(s.groups) {
			s.ipv4[s.groups[of]] = s.groups[i]
			s.retireSoon()
		}
	}
	s.berths = nil
	for i, entry := range state.Berths {
		b := &berth{number: i, slot: entry.Slot, used: entry.Used, spoiled: entry.Spoiled, left: entry.Left}
		for _, l := range entry.Leases {
			b.leases = append(b.leases, &lease{berth: b, slot: l.Slot, pid: l.PID})
		}
		s.berths = append(s.berths, b)
	}
	s.at = nil
	for _, i := range state.At {
		s.at = append(s.at, s.berths[i])
	}
	s.filled = make([]supervisor.Link, len(s.at))
	return nil
}

// letAgain makes the link of a worker of the program before, which has a berth.
func (s *steered) letAgain(pid int, restore func(*lease) (supervisor.Portable, error)) (supervisor.Portable, error) {
	if s == nil {
		return restore(nil)
	}
	s.mu.Lock()
	l := s.leaseOf(nil, pid)
	s.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("master: worker %d has no listener: that cannot be", pid)
	}
	link, err := restore(l)
	if err == nil {
		l.link = link
	}
	return link, err
}
