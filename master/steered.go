package master

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/steer"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// queuePoll is the time between two looks at the queues of listeners.
	queuePoll = 5 * time.Millisecond
	// queueTime is how long clients of an empty slot wait in its queues before the master
	// accepts: a worker that died has a successor by then.
	queueTime = 100 * time.Millisecond
	// mendInterval is how often to look what workers that live have done to their listeners.
	mendInterval = time.Second
)

// steered is the slots of a Master whose clients the kernel gives to them: each has a
// listener per address (package steer). Whose worker accepts from them concerns nobody
// here. For those who do not, the master accepts and hands off (attend.go).
//
// While a slot is empty its clients wait in its listeners' queues. If that lasts, the
// master accepts, and does with them what it does when it routes. Where workers cannot be
// handed connections it waits for as long as its patience, and then accepts to refuse.
type steered struct {
	table    *Table
	balancer *Balancer     // for workers that do not accept
	refuser  *Balancer     // for clients whom nobody accepts and who cannot be handed off
	patience time.Duration // with those
	tick     time.Duration // in which it is measured
	handsOff bool          // connections can be handed to workers
	log      hclog.Logger

	mu         sync.Mutex
	slots      int // as the supervisor has set them
	groups     []*steer.Group
	ipv4       map[*steer.Group]*steer.Group // of one for both families: the one for IPv4 beside it
	filled     bool                          // some slot was, once
	blocked    map[*os.File]bool             // listeners that were made so
	attendance attendance
}

// accepting is a worker that may accept from its slot's listeners. One that can be handed no
// connections and is not of this type accepts from all.
type accepting interface {
	// Accepts tells whether it does on this address. It is asked when the worker is ready.
	Accepts(addr netip.AddrPort) bool
}

func newSteered(groups []*steer.Group, table *Table, balancer *Balancer, cfg BalancerConfig, kind LinkKind) (*steered, error) {
	patience := cfg.patience()
	cfg.MaxRetries = 0
	refuser, err := NewBalancer(cfg, table)
	if err != nil {
		return nil, err
	}
	s := &steered{
		groups:     groups,
		ipv4:       make(map[*steer.Group]*steer.Group),
		blocked:    make(map[*os.File]bool),
		table:      table,
		balancer:   balancer,
		refuser:    refuser,
		patience:   patience,
		tick:       cfg.RetryDelay,
		handsOff:   kind.handsOff(),
		log:        cfg.Logger,
		attendance: attendance{current: make(map[*os.File]visit)},
	}
	s.attendance.failed = func(err error) { s.log.Error("cannot accept for a slot", "err", err) }
	return s, nil
}

// listener is one of a slot's.
type listener struct {
	*os.File // borrowed
	addr     netip.AddrPort
}

// listeners returns those of a slot, also of one that is yet to come, and none when the
// master routes. They are borrowed until Close.
func (s *steered) listeners(slot int) (listeners []listener, err error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		if err := g.Grow(slot + 1); err != nil {
			return nil, err
		}
		listeners = append(listeners, listener{g.Listener(slot), g.Addr().AddrPort()})
	}
	return listeners, nil
}

// listener returns a slot's listener on one address, or nil. It is borrowed until Close.
func (s *steered) listener(slot int, addr netip.AddrPort) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		if g.Addr().AddrPort() == addr {
			return g.Listener(slot)
		}
	}
	return nil
}

// files returns a slot's listeners for servers that may wait in accept. They are borrowed
// until Close.
func (s *steered) files(slot int) (files []*os.File, err error) {
	listeners, err := s.listeners(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ln := range listeners {
		file, blockErr := s.blocking(ln.File)
		err = errors.Join(err, blockErr)
		files = append(files, file)
	}
	return files, err
}

// blocking makes a listener so, once, for a server that does not make it otherwise.
func (s *steered) blocking(file *os.File) (*os.File, error) {
	if s.blocked[file] {
		return file, nil
	}
	s.blocked[file] = true
	return file, controlFile(file, func(fd int) error { return unix.SetNonblock(fd, false) })
}

// errFamilies: see onlyIPv4.
var errFamilies = errors.New("the workers that served first listen on both families, this one on IPv4 only; restart handfast, or give --listen an IPv4 address (0.0.0.0:PORT)")

// onlyIPv4 returns a slot's listener for IPv4 alone, in place of one for both families. The
// first call opens them, for all slots: from then on they get all clients of IPv4. So only
// the workers that serve first can decide that: those of a later generation may not stay.
func (s *steered) onlyIPv4(slot int, both *os.File) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := slices.IndexFunc(s.groups, func(g *steer.Group) bool { return g.Listener(slot) == both })
	if of < 0 {
		return nil, net.ErrClosed
	}
	four, opened := s.ipv4[s.groups[of]]
	if !opened {
		if s.filled {
			return nil, errFamilies
		}
		var err error
		if four, err = s.groups[of].OnlyIPv4(); err != nil || four == nil {
			return nil, cmp.Or(err, net.ErrClosed)
		}
		s.ipv4[s.groups[of]] = four
		s.groups = append(s.groups, four)
		for slot := range s.slots {
			s.wait(four.Listener(slot))
		}
		s.log.Info("listening", "address", four.Addr().String(), "route", "kernel", "why", "workers listen on IPv4 only")
	}
	if err := four.Grow(slot + 1); err != nil {
		return nil, err
	}
	return s.blocking(four.Listener(slot))
}

// offer returns a slot's listeners as they are offered to a worker.
func (s *steered) offer(slot int) (offer []fdpass.Handoff, err error) {
	listeners, err := s.listeners(slot)
	for _, ln := range listeners {
		h := fdpass.Handoff{FD: -1, Client: ln.addr}
		controlFile(ln.File, func(fd int) error { h.FD = fd; return nil })
		offer = append(offer, h)
	}
	return offer, err
}

// Resize implements supervisor.Slots. Whoever waits in the queue of a slot that is no more
// belongs to another, if they can be handed over; else its worker serves them before it
// leaves.
func (s *steered) Resize(n int) {
	s.table.Resize(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.slots
	s.slots = n
	for _, g := range s.groups {
		if err := g.Resize(n); err != nil {
			s.log.Error("the kernel does not give clients to their new slots", "address", g.Addr().String(), "slots", n, "err", err)
		}
		for slot := n; slot < before; slot++ {
			if s.handsOff {
				s.attendance.begin(g.Listener(slot), s.balancer.Attend)
			} else { // its worker serves them, before it leaves
				s.wait(g.Listener(slot))
			}
		}
		for slot := before; slot < n; slot++ {
			s.wait(g.Listener(slot))
		}
	}
}

// Fill implements supervisor.Slots.
func (s *steered) Fill(slot int, link supervisor.Link) {
	if worker, ok := link.(Worker); ok {
		s.table.Fill(slot, worker)
	}
	worker, asked := link.(accepting)
	s.mu.Lock()
	s.filled = true // so there will be no other groups
	groups := s.groups
	s.mu.Unlock()
	for _, g := range groups {
		// Without our lock, since the link may ask us for a listener under its own.
		accepts := asked && worker.Accepts(g.Addr().AddrPort()) || !asked && !s.handsOff
		s.mu.Lock()
		switch {
		case accepts:
			s.attendance.end(g.Listener(slot))
		case s.handsOff:
			s.attendance.begin(g.Listener(slot), s.balancer.Attend)
		default: // a server that does not listen on this address
			s.attendance.begin(g.Listener(slot), s.refuser.refuseLate(0, s.tick))
		}
		s.mu.Unlock()
	}
}

// Empty implements supervisor.Slots.
func (s *steered) Empty(slot int) {
	s.table.Empty(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		s.wait(g.Listener(slot))
	}
}

// wait sees to the clients of a slot that is empty.
func (s *steered) wait(listener *os.File) {
	if s.handsOff {
		s.attendance.begin(listener, attend(s.balancer.Attend).after(queueTime))
	} else {
		s.attendance.begin(listener, s.refuser.refuseLate(s.patience, s.tick))
	}
}

// hear is told what happens to workers.
func (s *steered) hear(e supervisor.Event) {
	if e.Kind == supervisor.WorkerExited || e.Kind == supervisor.WorkerGone {
		s.mend()
	}
}

// mend puts right what workers did to their listeners.
func (s *steered) mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		slots, err := g.Mend()
		for _, slot := range slots {
			s.attendance.again(g.Listener(slot))
		}
		if len(slots) > 0 {
			s.log.Warn("a worker has shut its slot's listener down, which resets who waits there", "slots", fmt.Sprint(slots), "address", g.Addr().String())
		}
		if err != nil {
			s.log.Error("a slot's listener is not what it was", "err", err)
		}
	}
}

// Serve waits until accepting ends, and then, within the patience and until killed ends, until
// those who were connected before have been accepted.
func (s *steered) Serve(accepting, killed context.Context, patience time.Duration) error {
	s.mu.Lock()
	for _, g := range s.groups {
		s.log.Info("listening", "address", g.Addr().String(), "route", "kernel")
	}
	s.mu.Unlock()
	for look := time.NewTicker(mendInterval); accepting.Err() == nil; {
		select {
		case <-look.C:
			s.mend()
		case <-accepting.Done():
		}
	}
	deadline := time.Now().Add(lastGrace + patience)
	s.mu.Lock()
	var err error
	for _, g := range s.groups {
		err = errors.Join(err, g.Silence())
	}
	s.mu.Unlock()
	time.Sleep(lastGrace) // for handshakes that are under way (acceptor.run)
	for s.waiting() > 0 && time.Now().Before(deadline) && killed.Err() == nil {
		time.Sleep(queuePoll)
	}
	return err
}

// waiting returns how many connections nobody has accepted.
func (s *steered) waiting() (sum int) {
	s.each(func(_ *os.File, waiting int) error { sum += waiting; return nil })
	return sum
}

// idle tells whether nobody waits in a slot's queues.
func (s *steered) idle(slot int) bool { return s.queue(slot) == 0 }

// queue returns how many connections wait in a slot's queues.
func (s *steered) queue(slot int) (sum int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		waiting, _, _ := g.Queue(slot) // nobody waits where nobody listens
		sum += waiting
	}
	return sum
}

// each calls f for each listener that there ever was.
func (s *steered) each(f func(listener *os.File, waiting int) error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		for slot := 0; g.Listener(slot) != nil; slot++ {
			waiting, _, queueErr := g.Queue(slot)
			if !errors.Is(queueErr, steer.ErrNotListening) {
				err = errors.Join(err, queueErr)
			}
			err = errors.Join(err, f(g.Listener(slot), waiting))
		}
	}
	return err
}

// Close refuses those whom nobody accepted, and closes the listeners. Call it when the
// workers have ended.
func (s *steered) Close(ctx context.Context) {
	s.attendance.endAll()
	s.each(func(listener *os.File, waiting int) (err error) {
		if waiting > 0 {
			err = s.refuser.takeBacklog(listener)
		}
		// An accept that waits, since somebody has made the listener blocking, ends only so.
		controlFile(listener, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
		return err
	})
	s.attendance.running.Wait()
	s.refuser.Shutdown(ctx)
	for _, g := range s.groups {
		g.Close()
	}
}
