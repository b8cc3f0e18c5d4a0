package nodeipc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// Where a bundle has what a Primary saves, and what a Link does.
var (
	part     = reexec.Part{Name: "nodeipc", Version: 1}
	linkPart = reexec.Part{Name: "nodeipc.link", Version: 2}
)

// errState is for a state that the program before cannot have had.
var errState = errors.New("that cannot be")

// savedPrimary is what the next program needs to go on with what all workers have in common.
type savedPrimary struct {
	LastID int64
	Data   map[string]json.RawMessage
	Shared map[string]int // descriptors
	Names  []savedName
}

// savedName is a socketName.
type savedName struct {
	Dir      int // a descriptor
	Base     string
	Dev, Ino uint64
}

// Save puts into the bundle what the next program needs, besides its links. Call it from
// Supervisor.Quiesce.
func (p *Primary) Save(b *reexec.Bundle) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := savedPrimary{LastID: p.lastID.Load(), Data: p.data, Shared: make(map[string]int)}
	for key, file := range p.shared {
		s.Shared[key] = b.KeepFile(file)
	}
	for _, name := range p.names {
		s.Names = append(s.Names, savedName{b.KeepFile(name.dir), name.base, name.dev, name.ino})
	}
	return b.Put(part, s)
}

// Restore goes on with what Save has put into a bundle. Call it before RestoreLink.
func (p *Primary) Restore(b *reexec.Bundle) error {
	var s savedPrimary
	if err := b.Get(part, &s); err != nil {
		return err
	}
	p.lastID.Store(s.LastID)
	for key, data := range s.Data {
		p.data[key] = data
	}
	for key, fd := range s.Shared {
		file, err := b.TakeUnpolled(fd, key)
		if err != nil {
			return fmt.Errorf("nodeipc: %w", err)
		}
		p.shared[key] = file
	}
	for _, name := range s.Names {
		dir, err := b.TakeUnpolled(name.Dir, name.Base)
		if err != nil {
			return fmt.Errorf("nodeipc: %w", err)
		}
		p.names = append(p.names, socketName{dir, name.Base, name.Dev, name.Ino})
	}
	return nil
}

// saved is what the next program needs to go on with a link.
type saved struct {
	Channel  int // a descriptor
	ID, Seq  int64
	Dialect  Dialect
	Half     []byte // received, and not a whole line yet
	Skip     bool
	Came     *int `json:",omitempty"` // a descriptor whose message is not whole yet; none in a dry run
	Servers  []savedServer
	Sessions []string
	Joined   bool     // it takes part in what workers say to each other
	UIDs     []string // of its adapters

	Shut, Paused, Over, Drained bool

	Missed int
	Left   string // why; empty: it has not

	Rest    []byte
	Answers []savedAnswer
	Relayed [][]byte

	// None in a dry run.
	Queue  []savedWaiting
	Flight []savedSent
	Lost   []savedSent
}

type savedServer struct {
	Key       string
	Addresses []netip.Prefix
	Of        netip.AddrPort
}

type savedAnswer struct {
	Text []byte
	File *savedFile
}

// savedFile is a listener that is sent to a worker: one that all share, or the worker's own.
type savedFile struct {
	Shared string // its key
	Own    netip.AddrPort
}

type savedWaiting struct {
	fdpass.Handoff
	Refused time.Time
}

// savedSent is a connection, a listener, or else a ping.
type savedSent struct {
	Seq            int64
	Handoff        *savedWaiting
	File           *savedFile
	Answer         reply
	Taken, Cluster bool
}

// Save implements supervisor.Link.
func (l *Link) Save(b *reexec.Bundle) (any, error) {
	s, err := l.save(b)
	if err != nil {
		return nil, err
	}
	return reexec.Seal(linkPart, s)
}

func (l *Link) save(b *reexec.Bundle) (*saved, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &saved{
		Channel: b.KeepFile(l.channel.file),
		ID:      l.id,
		Seq:     l.seq,
		Dialect: l.dialect,
		Half:    l.channel.in,
		Skip:    l.channel.skip,
		Shut:    l.shut,
		Paused:  l.paused,
		Over:    l.stopped,
		Drained: l.drained,
		Missed:  l.missed,
		Rest:    l.outbox.rest,
		Relayed: l.outbox.relayed,
	}
	if l.leftErr != nil {
		s.Left = l.leftErr.Error()
	}
	for _, server := range l.servers {
		s.Servers = append(s.Servers, savedServer{server.key, server.addresses, server.of})
	}
	for _, name := range l.sessions {
		s.Sessions = append(s.Sessions, name)
	}
	s.Joined, s.UIDs = l.primary.relay.member(l)
	for _, p := range l.outbox.answers {
		name, err := l.nameOf(p.file)
		if err != nil {
			return nil, err
		}
		s.Answers = append(s.Answers, savedAnswer{p.text, name})
	}
	if b.IsDryRun() { // it would hold connections open that others close
		return s, nil
	}
	if fd := l.channel.came; fd >= 0 {
		b.Keep(fd)
		s.Came = &fd
	}
	for _, w := range l.queue {
		s.Queue = append(s.Queue, *w.save(b))
	}
	var err error
	if s.Flight, err = l.saveSent(b, l.flight); err != nil {
		return nil, err
	}
	s.Lost, err = l.saveSent(b, l.lost)
	return s, err
}

func (w *waiting) save(b *reexec.Bundle) *savedWaiting {
	b.Keep(w.FD)
	return &savedWaiting{w.Handoff, w.refused}
}

func (l *Link) saveSent(b *reexec.Bundle, all []sent) (entries []savedSent, err error) {
	for _, s := range all {
		entry := savedSent{Seq: s.seq, Answer: s.answer, Taken: s.taken, Cluster: s.cluster}
		if entry.File, err = l.nameOf(s.file); err != nil {
			return nil, err
		}
		if s.file == nil && !s.ping {
			entry.Handoff = s.handoff.save(b)
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// nameOf says which listener this is; nil for none.
func (l *Link) nameOf(file *os.File) (*savedFile, error) {
	if file == nil {
		return nil, nil
	}
	l.primary.mu.Lock()
	defer l.primary.mu.Unlock()
	for key, shared := range l.primary.shared {
		if shared == file {
			return &savedFile{Shared: key}, nil
		}
	}
	for _, addr := range l.primary.cfg.Addresses {
		if l.ownListener(addr) == file {
			return &savedFile{Own: addr}, nil
		}
	}
	return nil, fmt.Errorf("nodeipc: worker %d waits for %s: %w", l.id, file.Name(), errState)
}

// named is the listener that nameOf meant.
func (l *Link) named(name *savedFile) (*os.File, error) {
	if name == nil {
		return nil, nil
	}
	file := l.primary.shared[name.Shared]
	if file == nil {
		file = l.ownListener(name.Own)
	}
	if file == nil {
		return nil, fmt.Errorf("nodeipc: worker %d waits for the listener %q %v: %w", l.id, name.Shared, name.Own, errState)
	}
	return file, nil
}

// ownListener is the worker's own listener on an address, where the kernel routes; else nil.
func (l *Link) ownListener(addr netip.AddrPort) *os.File {
	if l.own == nil {
		return nil
	}
	return l.own(addr)
}

// RestoreLink makes a link of what Save returned in the program before. Nothing is sent or
// received before Resume, except that connections may be delivered.
func (p *Primary) RestoreLink(b *reexec.Bundle, slot int, own func(netip.AddrPort) *os.File, state json.RawMessage) (*Link, error) {
	var s saved
	if err := b.Unseal(state, linkPart, &s); err != nil {
		return nil, fmt.Errorf("nodeipc: %w", err)
	}
	file, err := b.Take(s.Channel, "node channel")
	if err != nil {
		return nil, fmt.Errorf("nodeipc: %w", err)
	}
	ours, err := newChannel(file)
	if err != nil {
		return nil, fmt.Errorf("nodeipc: %w", err)
	}
	ours.in, ours.skip = s.Half, s.Skip
	l := p.newLink(slot, own, s.ID, s.Dialect, ours)
	l.seq = s.Seq
	l.shut, l.paused, l.stopped, l.drained = s.Shut, s.Paused, s.Over, s.Drained
	l.missed = s.Missed
	l.handsBack = p.cfg.HandBack != nil // it was started with the module, as far as we know
	if err := l.restoreTraffic(b, &s); err != nil {
		ours.file.Close()
		return nil, err
	}
	close(l.ready)
	if s.Left != "" {
		if l.leftErr = errors.New(s.Left); s.Left == ErrHungUp.Error() {
			l.leftErr = ErrHungUp
		}
		close(l.left)
	}
	for _, server := range s.Servers {
		l.servers = append(l.servers, server.restore())
	}
	for _, name := range s.Sessions {
		l.keepSession(name)
	}
	if s.Joined {
		p.relay.join(l, s.UIDs)
	}
	return l, nil
}

func (s *savedServer) restore() server {
	return server{key: s.Key, addresses: s.Addresses, of: s.Of, offer: toServer(s.Key)}
}

// restoreTraffic puts back what is under way.
func (l *Link) restoreTraffic(b *reexec.Bundle, s *saved) error {
	l.outbox.rest = s.Rest
	for _, text := range s.Relayed {
		l.outbox.addRelayed(text)
	}
	for _, answer := range s.Answers {
		file, err := l.named(answer.File)
		if err != nil {
			return err
		}
		l.outbox.addAnswer(packet{answer.Text, file})
	}
	if s.Came != nil {
		if err := b.TakeFD(*s.Came); err != nil {
			return fmt.Errorf("nodeipc: %w", err)
		}
		l.channel.came = *s.Came
	}
	for _, w := range s.Queue {
		if err := b.TakeFD(w.FD); err != nil {
			return fmt.Errorf("nodeipc: %w", err)
		}
		l.queue = append(l.queue, waiting{w.Handoff, w.Refused})
	}
	var err error
	if l.flight, err = l.restoreSent(b, s.Flight); err != nil {
		return err
	}
	l.pinged = slices.ContainsFunc(l.flight, func(s sent) bool { return s.ping })
	l.lost, err = l.restoreSent(b, s.Lost)
	return err
}

func (l *Link) restoreSent(b *reexec.Bundle, entries []savedSent) (all []sent, err error) {
	for _, entry := range entries {
		s := sent{seq: entry.Seq, answer: entry.Answer, taken: entry.Taken, cluster: entry.Cluster}
		if s.file, err = l.named(entry.File); err != nil {
			return nil, err
		}
		switch w := entry.Handoff; {
		case s.file != nil:
		case w != nil:
			if err := b.TakeFD(w.FD); err != nil {
				return nil, fmt.Errorf("nodeipc: %w", err)
			}
			s.handoff = waiting{w.Handoff, w.Refused}
		default:
			s.ping = true
		}
		all = append(all, s)
	}
	return all, nil
}

// Resume implements supervisor.Link. One that waits for the end of its sessions to leave is to
// be drained again.
func (l *Link) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused {
		l.after(pause, l.endPause)
	}
	if l.shut {
		l.after(reopen, l.staysShut)
	}
	if l.missed > 0 {
		l.after(missedDelay, l.reportMissed)
	}
	l.pump()
	l.start()
}

// member tells whether a worker takes part, and which adapters are its own.
func (r *relay) member(l *Link) (joined bool, uids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, joined := r.links[l]
	for uid, owner := range r.owners {
		if len(uids) == n {
			break
		}
		if owner == l {
			uids = append(uids, uid)
		}
	}
	return joined, uids
}

// join has a worker take part that did before.
func (r *relay) join(l *Link, uids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.announce(l, "")
	for _, uid := range uids {
		r.announce(l, uid)
	}
}
