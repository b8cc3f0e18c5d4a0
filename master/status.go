package master

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// Status is what a Master is doing. In JSON, times are as in RFC 3339, counts are since the
// slot or the master began, and null is what is not known: by the kernel's route workers
// accept for themselves, so nobody hands off; and few workers say what they have open.
type Status struct {
	Name       string    `json:"name"` // --name
	Version    string    `json:"version"`
	PID        int       `json:"pid"`
	Started    time.Time `json:"started"`
	Now        time.Time `json:"now"`      // on this machine: ages are differences to it
	Ready      bool      `json:"ready"`    // every slot has a worker that serves; see NotReady
	Stopping   bool      `json:"stopping"` // Stop was called
	Route      string    `json:"route"`    // who gives clients to slots: "master" or "kernel"
	Link       string    `json:"link"`     // how workers get connections
	Key        string    `json:"key"`      // what clients are recognised by: "address", or a list such as "cookie:NAME,header:NAME"
	Session    string    `json:"session"`  // where requests have ids that name their worker, as in --session; empty: nowhere
	Addresses  []string  `json:"addresses"`
	Generation int       `json:"generation"` // that the slots run, or the latest of them; 1 before the first reload

	Slots    []SlotStatus   `json:"slots"`    // by number
	Draining []WorkerStatus `json:"draining"` // workers that are in no slot any more, also those that linger, in the order of their generations
	Reload   *ReloadStatus  `json:"reload"`   // the one in progress, else the last one; null: there was none
	Totals   Totals         `json:"totals"`
	Largest  *LargestClient `json:"largest_client"` // null: not known, since hardly anybody comes
	Fullest  *FullestSlot   `json:"fullest_slot"`   // null: not known, for the same reason, or there is one slot only
	Sessions *SessionTotals `json:"sessions"`       // null: none names a worker
	Upgrade  UpgradeStatus  `json:"upgrade"`
}

// SessionTotals count connections that came by a session's id which names a worker, and so, where workers hand connections back,
// requests.
type SessionTotals struct {
	ToWorker    uint64 `json:"to_worker"`    // that it names
	ToSuccessor uint64 `json:"to_successor"` // in its slot, since it is no more
}

// LargestClient is the client that has more than half of the connections which came lately: most likely others are
// behind it. Where workers accept for themselves these are the connections that were seen open, every few seconds.
type LargestClient struct {
	Client string    `json:"client"` // empty: no client has more than half
	Share  float64   `json:"share"`  // more than 0.5, or 0 for no client
	Of     int       `json:"of"`     // of so many connections
	At     time.Time `json:"at"`     // when the last of them came
}

// UpgradeStatus is the latest try to replace the master's program.
type UpgradeStatus struct {
	Count int        `json:"count"` // how often that was done since the master was started
	At    *time.Time `json:"at"`    // when this program took another's place, or the latest try failed; null: neither
	From  string     `json:"from"`  // the version of the program before; empty: there was none
	Error string     `json:"error"` // why the latest try failed; empty: it did not
}

// SlotStatus is one slot.
type SlotStatus struct {
	Slot      int           `json:"slot"`
	State     string        `json:"state"`      // of its worker; "starting" if it has none yet, "empty" if none starts either
	Addresses []string      `json:"addresses"`  // of its own (--slot-address): what comes there belongs to it
	InUse     bool          `json:"in_use"`     // it has clients: a new slot has none before its first worker is ready
	Worker    *WorkerStatus `json:"worker"`     // null: nobody fills it
	Next      *WorkerStatus `json:"next"`       // starts, to take the slot over; or null
	Standby   *WorkerStatus `json:"standby"`    // was replaced, and comes back if Worker fails on its probation; or null
	NextStart *time.Time    `json:"next_start"` // null: none is due
	Restarts  int           `json:"restarts"`   // successors that were needed since a worker had ended, left, or could not be started
	LastEnd   *End          `json:"last_end"`   // the last one of those, which nobody had asked for

	Open *int     `json:"open"` // connections of its clients that workers have, also such as were replaced; null when the master routes
	Rate *float64 `json:"rate"` // connections a second that came to it in the last ten seconds or so; null: not known

	// Handshakes are those that clients have begun to the slot: nearly always a connection each. One whose first packet the kernel drops,
	// since too many connections wait, counts again when it comes again. Null when the master routes, and where the kernel may not count.
	Handshakes *uint64 `json:"handshakes"`

	HandedOff   *uint64 `json:"handed_off"`   // connections given to its workers by the master; one that was taken back counts again
	HandedBack  *uint64 `json:"handed_back"`  // by its workers, between two requests of which the next is another slot's
	Queue       *int    `json:"queue"`        // connections that wait in the slot's listeners for its worker to accept; null when the master routes
	Parked      int     `json:"parked"`       // that wait in the master for the slot
	Refused     uint64  `json:"refused"`      // ended for want of its worker
	MailboxFull *uint64 `json:"mailbox_full"` // how often its worker did not keep up, each try counted
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Slot       int        `json:"slot"`
	PID        int        `json:"pid"` // 0: its process is being started
	Generation int        `json:"generation"`
	State      string     `json:"state"` // starting, serving, hung (takes nothing, or does not answer: --watchdog), unhealthy (serves, and fails --healthy-when), standby, lingering, draining, stopping (was sent SIGTERM) or killed
	Started    time.Time  `json:"started"`
	Since      time.Time  `json:"since"`      // it is in this state
	Deadline   *time.Time `json:"deadline"`   // when the state has lasted too long; null: never
	Until      *time.Time `json:"until"`      // it lingers, if no client comes back; null: it does not linger
	Open       *uint64    `json:"open"`       // connections, as the worker says, a second ago at most
	MaxOpen    *int       `json:"max_open"`   // beyond them new ones are refused; null: never
	HandsBack  *bool      `json:"hands_back"` // connections whose next request is not its own; false: the first request on a connection decides for all; null: no request decides, or the worker is not ready
	Accepted   *uint64    `json:"accepted"`   // likewise, since it was started
	Passed     *uint64    `json:"passed"`     // likewise, that other slots' workers have passed to it between two requests; null: they do not
	Memory     *int64     `json:"memory"`     // bytes that it and its process group had some seconds ago; null: nobody looks (--max-memory)
	Says       string     `json:"says"`       // its STATUS by sd_notify (--sd-notify); empty: it has said none
}

// End is that of a worker when nobody had asked for it.
type End struct {
	PID        int       `json:"pid"` // 0: it could not be started
	Generation int       `json:"generation"`
	At         time.Time `json:"at"`
	Why        string    `json:"why"`
	LastWords  string    `json:"last_words"` // lines that it had written last; empty if nobody reads along
}

// ReloadStatus is one rolling replacement of all workers.
type ReloadStatus struct {
	Generation int        `json:"generation"`
	Done       int        `json:"done"`   // slots 0 to done-1 have been taken over
	Slots      int        `json:"slots"`  // that are to be
	Queued     bool       `json:"queued"` // another reload follows
	Began      time.Time  `json:"began"`
	Probation  *time.Time `json:"probation"` // when the workers that have taken slots over will have lasted long enough; null: they have, or there is none yet
	Ended      *time.Time `json:"ended"`     // null: in progress
	Error      string     `json:"error"`     // why it failed; empty: it did not
}

// Totals are those of all slots, also of such as were removed. Those that the master hands off are
// null when the kernel routes and the master has accepted nothing.
type Totals struct {
	Open       *int    `json:"open"`        // connections that workers have; null when the master routes
	Handshakes *uint64 `json:"handshakes"`  // that clients have begun, of all slots; null as those of a slot
	Accepted   *uint64 `json:"accepted"`    // connections accepted from listeners, by the master
	HandedOff  *uint64 `json:"handed_off"`  // given to workers; one that was taken back counts again
	TakenBack  *uint64 `json:"taken_back"`  // not taken by the worker that they were given to
	HandedBack *uint64 `json:"handed_back"` // by workers, between two requests
	Gone       *uint64 `json:"gone"`        // ended by the client before it was known
	Refused    uint64  `json:"refused"`     // ended for want of a worker, or of a request in time
	Parked     int     `json:"parked"`      // waiting now: for a slot, for the head of a request, or to be refused
	Idle       int     `json:"idle"`        // handed back, and between two requests now
}

// Hung is the state of a worker that serves, and does not answer the watchdog.
const Hung = "hung"

// Unhealthy is the state of a worker that serves, and fails its health checks.
const Unhealthy = "unhealthy"

// Status returns what the master is doing. It asks nobody who could be busy but the kernel, and that for the connections that
// are open; the figures are not of one instant.
func (m *Master) Status() Status {
	s := m.outline()
	for i := range s.Slots {
		s.Slots[i].Addresses = m.slotAddresses(i)
	}
	m.count(&s)
	if s.Session != "" {
		s.Sessions = new(SessionTotals)
		s.Sessions.ToWorker, s.Sessions.ToSuccessor = m.balancer.Table().SessionCounts()
	}
	return s
}

// NotReady is that of the Status, without counting anything.
func (m *Master) NotReady() string {
	s := m.outline()
	return s.NotReady()
}

// outline is the Status without figures.
func (m *Master) outline() Status {
	snapshot, _ := m.supervisor.Snapshot()
	s := Status{
		Name:       m.name,
		Version:    m.version,
		PID:        os.Getpid(),
		Started:    m.started.UTC(),
		Now:        time.Now().UTC(),
		Stopping:   snapshot.Stopping || m.isStopping(),
		Route:      m.route.String(),
		Link:       m.kind.name,
		Key:        m.balancer.Config().Clients.Rules.Keys.String(),
		Session:    m.balancer.Config().Clients.Rules.Sessions.String(),
		Generation: snapshot.Generation,
		Slots:      make([]SlotStatus, len(snapshot.Slots)),
		Draining:   []WorkerStatus{},
		Reload:     reloadStatus(snapshot),
	}
	if u := m.upgraded.Load(); !u.At.IsZero() {
		s.Upgrade = UpgradeStatus{Count: u.Count, At: new(u.At.UTC()), From: u.From}
		if u.Err != nil {
			s.Upgrade.Error = u.Err.Error()
		}
	}
	for _, addr := range m.route.addresses() {
		s.Addresses = append(s.Addresses, addr.String())
	}
	for _, path := range m.route.sockets() {
		s.Addresses = append(s.Addresses, "unix:"+path)
	}
	for i := range snapshot.Slots {
		s.Slots[i] = m.slotStatus(i, snapshot)
	}
	for _, w := range snapshot.Draining {
		s.Draining = append(s.Draining, *m.workerStatus(w))
	}
	s.Ready = s.NotReady() == ""
	return s
}

// slotAddresses returns a slot's own addresses, one for each port that is listened on; none if slots have none.
func (m *Master) slotAddresses(slot int) []string {
	all := []string{}
	own := m.balancer.Config().Clients.Hash.Slots
	for _, addr := range m.route.addresses() {
		if !own.IsValid() || !own.CoveredBy(addr.Addr()) {
			continue
		}
		if at := netip.AddrPortFrom(own.Of(slot), addr.Port()).String(); !slices.Contains(all, at) {
			all = append(all, at)
		}
	}
	return all
}

// count fills in the figures.
func (m *Master) count(s *Status) {
	parked := m.balancer.ParkedBySlot()
	for i := range s.Slots {
		sl, c := &s.Slots[i], m.balancer.Table().Counts(i)
		sl.Parked = parked[i]
		sl.Refused = c.Refused
		handedOff, handedBack, full := c.HandedOff, c.HandedBack, c.MailboxFull
		if m.route.acceptsAll() || handedOff > 0 || full > 0 {
			sl.HandedOff, sl.HandedBack, sl.MailboxFull = &handedOff, &handedBack, &full
		}
		if waiting, ok := m.route.queue(i); ok {
			sl.Queue = &waiting
		}
	}
	if l, known := m.balancer.Largest(); known {
		s.Largest = &LargestClient{Share: l.Share(), Of: l.Of, At: l.At.UTC()}
		if l.Client.IsValid() {
			s.Largest.Client = l.Client.String()
		}
	}
	stats := m.Stats()
	s.Totals = Totals{Refused: stats.Refused, Parked: stats.Parked, Idle: m.balancer.Idle()}
	m.countLately(s)
	if m.route.acceptsAll() || stats.Accepted > 0 {
		s.Totals.Accepted, s.Totals.HandedOff, s.Totals.TakenBack, s.Totals.HandedBack, s.Totals.Gone = &stats.Accepted, &stats.HandedOff, &stats.TakenBack, &stats.HandedBack, &stats.Gone
	}
}

// countLately fills in what is open, and what came lately.
func (m *Master) countLately(s *Status) {
	open, now := m.route.openBySlot(), time.Now()
	came, all := m.route.came()
	if came != nil && !m.route.acceptsAll() {
		s.Totals.Handshakes = &all
		for i := range s.Slots[:min(len(came), len(s.Slots))] {
			s.Slots[i].Handshakes = &came[i]
		}
	}
	if open != nil {
		s.Totals.Open = new(0)
	}
	for i, n := range open {
		*s.Totals.Open += n
		if i < len(s.Slots) {
			s.Slots[i].Open = &n
		}
	}
	for i, rate := range m.observer.rates(now, came) {
		if i < len(s.Slots) {
			s.Slots[i].Rate = &rate
		}
	}
	if s.Fullest = m.observer.latest(now); s.Fullest == nil {
		if f, ok := fullest(open, fullestOpen); ok {
			f.Open, f.At = true, now.UTC()
			s.Fullest = &f
		}
	}
}

// Requests says which requests decide which worker serves them: "each" on a connection, or the "first" for all that follow on it, of
// some worker at least. It is empty where none does, or no worker is ready.
func (s Status) Requests() (which string) {
	for _, sl := range s.Slots {
		switch w := sl.Worker; {
		case w == nil || w.HandsBack == nil:
		case !*w.HandsBack:
			return "first"
		default:
			which = "each"
		}
	}
	return which
}

// NotReady says why the master is not ready, or nothing: it is when each slot that is in use has
// a worker that serves, and no stop is under way. During a reload it is.
func (s *Status) NotReady() string {
	var empty []string
	used := 0
	for _, sl := range s.Slots {
		if !sl.InUse {
			continue
		}
		used++
		if sl.Worker == nil {
			empty = append(empty, fmt.Sprintf("slot %d is %s", sl.Slot, sl.State))
		}
	}
	switch {
	case s.Stopping:
		return "stopping"
	case used == 0:
		return "starting"
	default:
		return strings.Join(empty, ", ")
	}
}

// NotInUse says which slots have no clients yet, since they are new and their first workers are not ready, or nothing. The master is
// ready without them.
func (s *Status) NotInUse() string {
	var all []string
	for _, sl := range s.Slots {
		if !sl.InUse {
			all = append(all, fmt.Sprintf("slot %d is %s, and new", sl.Slot, sl.State))
		}
	}
	return strings.Join(all, ", ")
}

func (m *Master) slotStatus(slot int, snapshot *supervisor.Snapshot) SlotStatus {
	sl := &snapshot.Slots[slot]
	s := SlotStatus{
		Slot:      slot,
		State:     "empty",
		InUse:     slot < snapshot.InUse,
		Worker:    m.workerStatus(sl.Worker),
		Next:      m.workerStatus(sl.Next),
		Standby:   m.workerStatus(sl.Standby),
		NextStart: timeStatus(sl.NextStart),
		Restarts:  sl.Restarts,
	}
	if w := cmp.Or(s.Worker, s.Next); w != nil {
		s.State = w.State
	}
	if end := sl.LastEnd; end != nil {
		s.LastEnd = &End{end.PID, end.Generation, end.At.UTC(), end.Why, end.LastWords}
	}
	return s
}

// workerStatus is nil for no worker.
func (m *Master) workerStatus(w *supervisor.WorkerStatus) *WorkerStatus {
	if w == nil {
		return nil
	}
	s := &WorkerStatus{
		Slot:       w.Slot,
		PID:        w.PID,
		Generation: w.Generation,
		State:      w.State.String(),
		Started:    w.Started.UTC(),
		Since:      w.Since.UTC(),
		Deadline:   timeStatus(w.Deadline),
		Until:      timeStatus(w.Until),
	}
	if !w.Sick.IsZero() && w.State == supervisor.Serving {
		s.State, s.Since = Unhealthy, w.Sick.UTC()
	}
	if w.Notices != nil {
		s.Says = w.Notices.Said().Status
	}
	if w.Memory > 0 {
		s.Memory = &w.Memory
	}
	if !w.Silent.IsZero() {
		s.State, s.Since = Hung, w.Silent.UTC()
	}
	link := known(w.Link)
	if m.requestsDecide && w.State != supervisor.Starting {
		s.HandsBack = new(link.eachRequest())
	}
	if worker := link.reports; worker != nil {
		if most := worker.MaxConnections(); most > 0 {
			s.MaxOpen = &most
		}
		if r, said := worker.Report(); said {
			s.Open, s.Accepted = &r.Open, &r.Accepted
			if slots := m.requests.Slots; slots != nil && slots.Passes {
				s.Passed = new(uint64(r.Passed))
			}
		}
	}
	return s
}

func reloadStatus(snapshot *supervisor.Snapshot) *ReloadStatus {
	r := snapshot.Reload
	if r == nil {
		return nil
	}
	s := &ReloadStatus{
		Generation: r.Generation,
		Done:       r.Done,
		Slots:      r.Slots,
		Queued:     snapshot.Queued,
		Began:      r.Began.UTC(),
		Probation:  timeStatus(r.Probation),
		Ended:      timeStatus(r.Ended),
	}
	if r.Err != nil {
		s.Error = r.Err.Error()
	}
	return s
}

// timeStatus is nil for no time.
func timeStatus(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// Placement says where a client belongs.
type Placement struct {
	Client string        `json:"client"` // as it was asked for
	Key    string        `json:"key"`    // what it was understood as: "address", a list such as "cookie:NAME,header:NAME", or "session"
	Slot   int           `json:"slot"`
	Slots  int           `json:"slots"`
	Worker *WorkerStatus `json:"worker"` // null: nobody fills the slot
}

// bySession is the key of a Placement that a session's id has decided.
const bySession = "session"

// Place returns the slot of a client, which is named by what the master recognises clients
// by: an address, or the value of a header or the like. If it ends in a worker's token, it is the id of a session, and its worker is the
// one that it names, if that lives.
func (m *Master) Place(client string) (Placement, error) {
	cfg := m.balancer.Config()
	p := Placement{Client: client, Key: cfg.Clients.Rules.Keys.String(), Slots: m.balancer.Table().Len()}
	snapshot, _ := m.supervisor.Snapshot()
	if name, found := m.names.of(client); found && name.Slot < p.Slots {
		p.Key, p.Slot = bySession, name.Slot
		p.Worker = m.workerStatus(m.names.find(snapshot, name))
		return p, nil
	}
	key, err := cfg.Clients.KeyOf(client)
	if err != nil {
		return p, fmt.Errorf("master: %w", err)
	}
	p.Slot = cfg.Strategy.Slot(clientip.Client{Key: key}, p.Slots, 0)
	if p.Slot < len(snapshot.Slots) {
		p.Worker = m.workerStatus(snapshot.Slots[p.Slot].Worker)
	}
	return p, nil
}

// Snapshot is the supervisor's, with a channel that is closed when there may be something new.
func (m *Master) Snapshot() (*supervisor.Snapshot, <-chan struct{}) { return m.supervisor.Snapshot() }
