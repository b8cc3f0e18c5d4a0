package master

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// route gives clients to slots. The supervisor tells it whose link is in which slot.
type route interface {
	supervisor.Slots
	String() string // "master" or "kernel"

	// addresses returns those that clients come to now.
	addresses() []netip.AddrPort
	// sockets returns the paths of Unix sockets that they come to.
	sockets() []string
	// open makes the link of a worker that is about to be started, with its own listeners if it is to
	// have some.
	open(supervisor.Seat, func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error)
	// reopen does so for a worker of the program before.
	reopen(pid int, restore func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error)
	// handleEvent is told what happens to workers, in the supervisor's loop. It must not wait.
	handleEvent(supervisor.Event)

	// serve gives clients to slots until accepting ends, and then, within the patience and until
	// killed ends, clients that had connected before.
	serve(accepting, killed context.Context, patience time.Duration) error
	// close refuses connections that nobody accepted. The workers have ended.
	close(context.Context)

	// balancers are those that may have connections.
	balancers() []*balancer.Balancer
	// acceptsAll tells whether those have accepted all connections that there were.
	acceptsAll() bool
	// queue returns how many connections wait for a slot's workers to accept, and whether such can.
	queue(slot int) (waiting int, ok bool)
	// openBySlot returns how many connections workers have, by slot; nil: not known.
	openBySlot() []int
	// came returns how many connections have come to each slot, and how many in all; nil: not known.
	came() (bySlot []uint64, all uint64)
	// sample is called every few seconds.
	sample()
	// save keeps the listeners for the next program.
	save(*reexec.Bundle, *saved)
	// saveCounts keeps, after save, what counts; nil: nothing.
	saveCounts(*reexec.Bundle) *kernelroute.SavedCounts
}

// newRoute makes the route that the configuration asks for.
func (m *Master) newRoute(cfg *Config) (route, error) {
	if !cfg.kernelRoutes() {
		r := &masterRoute{Table: m.balancer.Table(), slots: m.requests.Slots, keeps: cfg.DrainAffinity > 0, balancer: m.balancer, listeners: cfg.Listeners, retired: cfg.retired, log: cfg.Logger}
		for _, ln := range r.listeners {
			if at := balancer.Address(ln); at.IsValid() {
				r.at = append(r.at, at)
			} else if at, ok := ln.Addr().(*net.UnixAddr); ok {
				r.paths = append(r.paths, at.Name)
			}
		}
		return r, nil
	}
	kernel, err := kernelroute.New(kernelroute.Config{
		Groups:        cfg.Groups,
		Balancer:      m.balancer,
		HandsOff:      m.kind.connections,
		Blocking:      m.kind.blocking,
		SharingRemedy: m.kind.sharing,
		Programs:      cfg.Programs,
		Follows:       cfg.Follow,
		User:          cfg.Supervisor.Rights.User,
		Finishing:     func(link supervisor.Link) { m.supervisor.Finishing(link) },
	})
	if err == nil && cfg.resume != nil {
		err = kernel.Restore(cfg.resume.KernelRoute, cfg.counts)
	}
	return kernelRoute{kernel, m.balancer}, err
}

// masterRoute: the master accepts, and hands each connection to the worker in its client's slot.
type masterRoute struct {
	*balancer.Table
	slots     *mailbox.Slots // nil: workers need not know
	keeps     bool           // clients go back to a worker that was replaced (Config.DrainAffinity)
	balancer  *balancer.Balancer
	listeners []net.Listener
	at        []netip.AddrPort // where they are
	paths     []string         // and Unix sockets
	retired   []net.Listener   // to be accepted from for the last time
	log       hclog.Logger
}

func (r *masterRoute) String() string { return "master" }

// Resize implements supervisor.Slots.
func (r *masterRoute) Resize(n int) {
	for _, w := range r.Table.Resize(n) {
		r.setReplaced(w, true)
	}
	if r.slots != nil {
		r.slots.Set(n)
	}
}

// Fill implements supervisor.Slots.
func (r *masterRoute) Fill(slot int, link supervisor.Link) {
	worker := known(link).worker
	before := r.Table.Fill(slot, worker)
	r.setReplaced(before, true)
	r.setReplaced(worker, false)
	if m, ok := worker.(*mailbox.Mailbox); ok && r.slots != nil {
		r.slots.Seat(slot, m)
	}
}

// setReplaced tells a worker that hands connections back whether its slot has another one.
func (r *masterRoute) setReplaced(w balancer.Worker, replaced bool) {
	if m, ok := w.(*mailbox.Mailbox); ok && r.slots != nil && !r.keeps {
		r.slots.SetReplaced(m, replaced)
	}
}

func (r *masterRoute) addresses() []netip.AddrPort { return slices.Clone(r.at) }

func (r *masterRoute) sockets() []string { return r.paths }

func (r *masterRoute) open(_ supervisor.Seat, open func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	return opened(open(nil))
}

func (r *masterRoute) reopen(_ int, restore func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	return opened(restore(nil))
}

func (r *masterRoute) handleEvent(supervisor.Event) {}

// serve returns when it accepts from no listener any more. One that fails ends all.
func (r *masterRoute) serve(accepting, _ context.Context, _ time.Duration) (failed error) {
	accepting, stop := context.WithCancel(accepting)
	defer stop()
	var retiring sync.WaitGroup
	defer retiring.Wait()
	over, end := context.WithCancel(accepting)
	end()
	for _, ln := range r.retired {
		retiring.Go(func() {
			if err := r.balancer.Serve(over, ln); err != nil {
				r.log.Error("what waited at an address that is no more was not accepted", "address", ln.Addr().String(), "err", err)
			}
		})
	}
	ended := make(chan error)
	for _, ln := range r.listeners {
		go func() { ended <- r.balancer.Serve(accepting, ln) }()
	}
	for range r.listeners {
		err := <-ended
		stop()
		failed = errors.Join(failed, err)
	}
	return failed
}

func (r *masterRoute) close(context.Context)           {}
func (r *masterRoute) balancers() []*balancer.Balancer { return []*balancer.Balancer{r.balancer} }
func (r *masterRoute) acceptsAll() bool                { return true }
func (r *masterRoute) queue(int) (int, bool)           { return 0, false }
func (r *masterRoute) openBySlot() []int               { return nil }
func (r *masterRoute) sample()                         {}

func (r *masterRoute) saveCounts(*reexec.Bundle) *kernelroute.SavedCounts { return nil }

func (r *masterRoute) came() (bySlot []uint64, all uint64) {
	for _, c := range r.AllCounts() {
		bySlot = append(bySlot, c.HandedOff)
	}
	return bySlot, r.balancer.Stats().HandedOff
}

func (r *masterRoute) save(b *reexec.Bundle, state *saved) {
	state.Listeners = r.balancer.SaveListeners(b)
}

// kernelRoute: the kernel gives each client to a listener of its slot, and workers accept. The master
// does so only where they do not.
type kernelRoute struct {
	*kernelroute.Route
	balancer *balancer.Balancer
}

func (r kernelRoute) String() string { return "kernel" }

// Fill implements supervisor.Slots.
func (r kernelRoute) Fill(slot int, link supervisor.Link) { r.Route.Fill(slot, known(link)) }

func (r kernelRoute) addresses() []netip.AddrPort { return r.Route.Addresses() }
func (r kernelRoute) sockets() []string           { return nil }

func (r kernelRoute) open(seat supervisor.Seat, open func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	return opened(r.Route.OpenLink(seat, func(l *kernelroute.Lease) (kernelroute.Link, error) { return open(l) }))
}

func (r kernelRoute) reopen(pid int, restore func(*kernelroute.Lease) (*workerLink, error)) (supervisor.Link, error) {
	return opened(r.Route.RestoreLink(pid, func(l *kernelroute.Lease) (kernelroute.Link, error) { return restore(l) }))
}

func (r kernelRoute) handleEvent(e supervisor.Event) { r.Route.HandleEvent(e) }

func (r kernelRoute) serve(accepting, killed context.Context, patience time.Duration) error {
	return r.Route.Serve(accepting, killed, patience)
}

func (r kernelRoute) close(ctx context.Context) { r.Route.Close(ctx) }

func (r kernelRoute) balancers() []*balancer.Balancer {
	return []*balancer.Balancer{r.balancer, r.Route.Refuser()}
}

func (r kernelRoute) acceptsAll() bool                    { return false }
func (r kernelRoute) queue(slot int) (int, bool)          { return r.Route.Queue(slot), true }
func (r kernelRoute) openBySlot() []int                   { return r.Route.Open() }
func (r kernelRoute) came() ([]uint64, uint64)            { return r.Route.Came() }
func (r kernelRoute) sample()                             { r.Route.Sample() }
func (r kernelRoute) save(b *reexec.Bundle, state *saved) { state.KernelRoute = r.Route.Save(b) }

func (r kernelRoute) saveCounts(b *reexec.Bundle) *kernelroute.SavedCounts { return r.SaveCounts(b) }

// opened is a link, or none: a nil *workerLink is not a nil supervisor.Link.
func opened[L supervisor.Link](link L, err error) (supervisor.Link, error) {
	if err != nil {
		return nil, err
	}
	return link, nil
}
