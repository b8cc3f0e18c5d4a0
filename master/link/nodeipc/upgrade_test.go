package nodeipc

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// upgrade has another primary and other links take the place of these: with what was saved, as JSON,
// and with duplicates of the descriptors that were kept.
func (p testPrimary) upgrade(t testing.TB, ls ...*Link) (testPrimary, []*Link) {
	t.Helper()
	for _, l := range ls {
		l.rest()
	}
	saved, next := reexec.NewBundle("this"), reexec.NewBundle("this")
	if err := p.Save(saved); err != nil {
		t.Fatal(err)
	}
	var states []json.RawMessage
	for _, l := range ls {
		states = append(states, save(t, l, saved, next))
	}
	var common savedPrimary
	if err := saved.Get(part, &common); err != nil {
		t.Fatal(err)
	}
	for key, fd := range common.Shared {
		common.Shared[key] = keepCopy(t, next, fd)
	}
	for i := range common.Names {
		common.Names[i].Dir = keepCopy(t, next, common.Names[i].Dir)
	}
	next.Put(part, common)
	for _, l := range ls {
		l.end()
	}
	for _, name := range p.names {
		name.dir.Close()
	}
	p.names = nil
	p.Close()

	successor := testPrimary{NewPrimary(p.cfg)}
	successor.ports = p.ports
	t.Cleanup(successor.Close)
	if err := successor.Restore(next); err != nil {
		t.Fatal(err)
	}
	var links []*Link
	for i, state := range states {
		l, err := successor.RestoreLink(next, ls[i].slot, ls[i].own, state)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if !fdtest.IsClosed(l.ended) {
				l.Close()
			}
		})
		links = append(links, l)
	}
	for _, l := range links {
		l.Resume()
	}
	return successor, links
}

// save saves a link, with duplicates of its descriptors in the bundle next.
func save(t testing.TB, l *Link, b, next *reexec.Bundle) json.RawMessage {
	t.Helper()
	s, err := l.save(b)
	if err != nil {
		t.Fatal(err)
	}
	s.Channel = keepCopy(t, next, s.Channel)
	for i := range s.Queue {
		s.Queue[i].FD = keepCopy(t, next, s.Queue[i].FD)
	}
	for _, entry := range s.Flight {
		if entry.Handoff != nil {
			entry.Handoff.FD = keepCopy(t, next, entry.Handoff.FD)
		}
	}
	text, err := reexec.Seal(linkPart, s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func keepCopy(t testing.TB, b *reexec.Bundle, fd int) int {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b.Keep(fd)
}

// rest stops what a link does by itself, as execve finds it.
func (l *Link) rest() {
	close(l.ended)
	l.channel.interrupt()
	l.done.Wait()
}

// end closes what a link has that is at rest, and tells nobody.
func (l *Link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetSessions()
	for _, w := range l.queue {
		fdpass.CloseHandoffs([]fdpass.Handoff{w.Handoff})
	}
	for _, s := range l.flight {
		if s.file == nil && !s.ping {
			fdpass.CloseHandoffs([]fdpass.Handoff{s.handoff.Handoff})
		}
	}
	l.queue, l.flight, l.shut = nil, nil, false
	l.channel.file.Close()
}

// see waits until something shows in a link.
func see(t testing.TB, what string, l *Link, ok func() bool) {
	t.Helper()
	fdtest.Eventually(t, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return ok()
	})
}

// TestUpgradeHalfHeard: the rest of a message is heard by the next program, wherever it was cut, and
// the rest of one that is too long is skipped.
func TestUpgradeHalfHeard(t *testing.T) {
	query := fmt.Sprintf(queryFor, 7, port)
	for name, before := range map[string]string{
		"nothing":  "",
		"one byte": query[:1],
		"half":     query[:len(query)/2],
		"all":      query,
		"too long": strings.Repeat("x", maxLine+1),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
			l, w := p.openLink(t)
			w.say(before)
			fdtest.Eventually(t, "half a message", func() bool {
				reexec.Lock.Lock()
				defer reexec.Lock.Unlock()
				return len(l.channel.in) == len(before) || l.channel.skip
			})
			p.upgrade(t, l)
			if l.channel.skip {
				w.say(fmt.Sprintf(queryFor, 8, port) + "\n" + query + "\n")
			} else {
				w.say(strings.TrimPrefix(query, before) + "\n")
			}
			if m := w.hear(); m.Ack == nil || *m.Ack != 7 || m.Errno != 0 {
				t.Errorf("heard %+v", m)
			}
		})
	}
}

// TestUpgradeHalfSaid: a worker that has read a part of a message reads the rest of it, and then all
// that waited: what others say, answers with their listeners, connections.
func TestUpgradeHalfSaid(t *testing.T) {
	p, ls, ws := team(t, 2, hclog.NewNullLogger())
	key := ws[1].listens()
	var said []string
	for i := range 3 {
		said = append(said, fmt.Sprintf(`{"type":3,"uid":"u0","data":"%d%s","source":"_sio_adapter"}`, i, strings.Repeat("x", 1<<20)))
		ws[0].say(said[i] + "\n")
	}
	ws[0].understood(ls[0])
	ws[1].say(queryElsewhere + "\n")
	see(t, "half a message", ls[1], func() bool { return len(ls[1].outbox.rest) > 0 && len(ls[1].outbox.answers) > 0 })
	hs, clients := connect(t, 3)
	deliver(t, ls[1], hs)
	p, ls = p.upgrade(t, ls...)
	more, moreClients := connect(t, 1)
	deliver(t, ls[1], more)
	p.upgrade(t, ls...)

	ws[1].hears(said[0])
	m := ws[1].hear()
	if in := m.inner(); in.Ack == nil || *in.Ack != 8 || in.Errno != 0 {
		t.Fatalf("heard %+v, want the listener", m)
	}
	if n, err := unix.GetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); n != 1 || err != nil {
		t.Errorf("it does not listen: %v", err)
	}
	if flags, _ := unix.FcntlInt(uintptr(m.fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
		t.Error("it blocks")
	}
	unix.Close(m.fd)
	ws[1].sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	relayed := 1
	for connections := 0; relayed < len(said) || connections < len(hs)+1; {
		text := ws[1].hearLine()
		if strings.HasPrefix(string(text), `{"type":3`) {
			if string(text) != said[relayed] {
				t.Fatalf("message %d is %.100q", relayed, text)
			}
			relayed++
			continue
		}
		var m heard
		if err := json.Unmarshal(text, &m); err != nil || m.inner().Key != key || len(ws[1].fds) == 0 {
			t.Fatalf("heard %.100q, want a connection to %s", text, key)
		}
		unix.Close(ws[1].fds[0])
		ws[1].fds = ws[1].fds[1:]
		ws[1].accepts(m.inner().Seq)
		connections++
	}
	gone(t, append(clients, moreClients...)...)

	// Those who talked to each other still do.
	answer := `{"type":8,"uid":"u1","requesterUid":"u0","source":"_sio_adapter"}`
	ws[1].say(answer + "\n")
	ws[0].hears(answer)
	ws[1].hearsNothing()
}

// TestUpgradeInFlight: what a worker was sent is closed when it says that it has taken it, placed
// again when it refuses or dies, and not sent twice; what was queued is sent.
func TestUpgradeInFlight(t *testing.T) {
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	l, w := p.openLink(t)
	w.listens()
	hs, clients := connect(t, window+10)
	deliver(t, l, hs)
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`) // Node has it, and the server is to say something
	see(t, "word of Node", l, func() bool { return l.flight[0].taken })
	p, ls := p.upgrade(t, l)
	seqs := make([]int64, window)
	for i := range seqs {
		seqs[i] = w.takes()
	}
	w.hearsNothing() // the window is full
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true}`, seqs[0])
	w.accepts(seqs[1])
	gone(t, clients[:2]...)
	p, ls = p.upgrade(t, ls...)
	for i := range 2 {
		seqs = append(seqs, w.takes())
		if seqs[window+i] <= seqs[window+i-1] {
			t.Errorf("connection %d has number %d, the one before %d", window+i, seqs[window+i], seqs[window+i-1])
		}
	}
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, seqs[2])
	see(t, "pause", ls[0], func() bool { return ls[0].paused })
	_, ls = p.upgrade(t, ls...)
	w.accepts(w.takes()) // that which was refused, after the pause: the first of those that wait
	gone(t, clients[2])
	w.Close()
	r.want(t, hs[3:])
	fdtest.Closed(t, "leaving", ls[0].Left())
	if err := ls[0].Err(); !errors.Is(err, ErrHungUp) {
		t.Errorf("left: %v", err)
	}
}

// TestUpgradeTaken: words of Node about descriptors concern the ones that it has not spoken of before.
func TestUpgradeTaken(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	l, w := p.openLink(t)
	w.listens()
	hs, clients := connect(t, 2)
	deliver(t, l, hs)
	first := w.takes()
	w.takes()
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	see(t, "word of Node", l, func() bool { return l.flight[0].taken })
	p.upgrade(t, l)
	w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`) // of the second
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true}`, first)
	gone(t, clients[0])
	w.accepts(w.takes())
	gone(t, clients[1])
}

// TestUpgradeLostListener: a shared listener that did not arrive is sent again.
func TestUpgradeLostListener(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	l, w := p.openLink(t)
	w.say(queryElsewhere + "\n")
	unix.Close(w.hear().fd)
	p, ls := p.upgrade(t, l)
	w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`)
	see(t, "loss", ls[0], func() bool { return len(ls[0].lost) > 0 })
	p.upgrade(t, ls...)
	m := w.hear()
	if in := m.inner(); in.Ack == nil || *in.Ack != 8 {
		t.Errorf("heard %+v", m)
	}
	unix.Close(m.fd)
}

// TestUpgradeLeaves: one that has left has left, one that has closed its server may still listen
// again, and one that waits for the end of its sessions is told to go then, once.
func TestUpgradeLeaves(t *testing.T) {
	t.Run("left", func(t *testing.T) {
		p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
		l, w := p.openLink(t)
		w.sayf(`{"cmd":"disconnect"}`)
		fdtest.Closed(t, "leaving", l.Left())
		_, ls := p.upgrade(t, l)
		fdtest.Closed(t, "leaving", ls[0].Left())
		if err := ls[0].Err(); err == nil || err.Error() != ErrAskedFor.Error() {
			t.Errorf("left: %v", err)
		}
		if n, err := reexectest.Passing(ls[0].Deliver)(make([]fdpass.Handoff, 1)); n != 0 || err != fdpass.ErrClosed {
			t.Errorf("delivered %d, error %v", n, err)
		}
	})
	t.Run("closed its server", func(t *testing.T) {
		p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
		l, w := p.openLink(t)
		w.sayf(`{"cmd":"NODE_CLUSTER","act":"close","key":%q,"seq":9}`, w.listens())
		see(t, "closing", l, func() bool { return l.shut })
		hs, clients := connect(t, 1)
		deliver(t, l, hs)
		p, ls := p.upgrade(t, l)
		key := w.listens()
		w.accepts(w.takes())
		gone(t, clients...)
		w.sayf(`{"cmd":"NODE_CLUSTER","act":"close","key":%q,"seq":9}`, key)
		see(t, "closing", ls[0], func() bool { return ls[0].shut })
		_, ls = p.upgrade(t, ls...)
		fdtest.Closed(t, "leaving", ls[0].Left())
		if err := ls[0].Err(); err != ErrClosedServer {
			t.Errorf("left: %v", err)
		}
	})
	t.Run("sessions", func(t *testing.T) {
		r := new(returned)
		p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
		l, w := p.openLink(t)
		other, v := p.openLink(t)
		w.sayf(`{"type":"sticky:connection","data":"a"}`)
		w.sayf(`{"type":"sticky:connection","data":"b"}`)
		r.keeps(t, 2)
		v.sayf(`{"type":"sticky:connection","data":"a"}`) // which is another's
		v.understood(other)
		l.Drain()
		_, ls := p.upgrade(t, other, l)
		ls[1].Drain() // as the supervisor does
		r.keeps(t, 2)
		r.mu.Lock()
		for id, owner := range r.sessions {
			if owner != ls[1] {
				t.Errorf("session %x has another worker", id)
			}
		}
		r.mu.Unlock()
		w.sayf(`{"type":"sticky:disconnection","data":"a"}`)
		r.keeps(t, 1)
		w.hearsNothing()
		w.sayf(`{"type":"sticky:disconnection","data":"b"}`)
		if m := w.hear(); m.Cmd != cmdDisconnect {
			t.Errorf("heard %+v, want that it is to leave", m)
		}
		if m := w.hear(); m.Act != "disconnect" {
			t.Errorf("heard %+v, want that it is to leave", m)
		}
		w.hearsNothing()
	})
}

// TestUpgradeDialect: a worker goes on hearing what it was written for, though the next program's
// workers may be others.
func TestUpgradeDialect(t *testing.T) {
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	p.cfg.Dialect = StickySession
	l, w := p.openLink(t)
	p.cfg.Dialect = StickyListen // of the next program
	_, ls := p.upgrade(t, l)
	hs, _ := connect(t, 1)
	deliver(t, ls[0], hs)
	if m := w.hear(); string(m.Msg) != `"sticky:balance"` {
		t.Errorf("heard %s", m.Msg)
	} else {
		unix.Close(m.fd)
	}
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	w.sayf(`{"type":"close"}`)
	fdtest.Closed(t, "leaving", ls[0].Left())
}

// TestUpgradeMissed: what a worker has missed is still reported.
func TestUpgradeMissed(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	l, _ := p.openLink(t)
	l.locked(l.countMissed)
	l.locked(l.countMissed)
	_, ls := p.upgrade(t, l)
	see(t, "missed messages", ls[0], func() bool { return ls[0].missed == 2 })
	begin := time.Now()
	see(t, "the report", ls[0], func() bool { return ls[0].missed == 0 })
	if after := time.Since(begin); after > 2*missedDelay {
		t.Errorf("reported after %v", after)
	}
}

// TestDryRun: a program that is only tried does not hold connections open.
func TestDryRun(t *testing.T) {
	p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
	l, w := p.openLink(t)
	w.listens()
	hs, _ := connect(t, window+1)
	deliver(t, l, hs)
	l.rest()
	defer l.end()
	if s, err := l.save(reexec.NewDryRun("this")); err != nil || len(s.Queue)+len(s.Flight) > 0 {
		t.Errorf("%d and %d connections, error %v", len(s.Queue), len(s.Flight), err)
	}
	if s, err := l.save(reexec.NewBundle("this")); err != nil || len(s.Queue) != 1 || len(s.Flight) != window {
		t.Errorf("%+v, error %v", s, err)
	}
}

// TestRestoreImpossible: what no program can have left is an error.
func TestRestoreImpossible(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":             `{`,
		"no channel":          `{}`,
		"no such channel":     `{"Channel":-1}`,
		"a connection":        `{"Channel":%d,"Queue":[{"FD":999}]}`,
		"the channel again":   `{"Channel":%[1]d,"Queue":[{"FD":%[1]d}]}`,
		"a connection sent":   `{"Channel":%d,"Flight":[{"Handoff":{"FD":999}}]}`,
		"a connection lost":   `{"Channel":%d,"Lost":[{"Handoff":{"FD":999}}]}`,
		"a listener sent":     `{"Channel":%d,"Flight":[{"File":{"Shared":"none"}}]}`,
		"a listener, waiting": `{"Channel":%d,"Answers":[{"File":{"Own":"127.0.0.1:1"}}]}`,
		"an address":          `{"Channel":%d,"Servers":[{"Of":"nowhere"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPrimary(t, ReadyAuto, new(returned), hclog.NewNullLogger())
			b := reexec.NewBundle("this")
			defer b.Close()
			if strings.Contains(text, "%") {
				ours, theirs, err := pair()
				if err != nil {
					t.Fatal(err)
				}
				defer ours.file.Close()
				defer theirs.Close()
				var fd int
				ours.raw.Control(func(s uintptr) { fd = keepCopy(t, b, int(s)) })
				text = fmt.Sprintf(text, fd)
			}
			state := json.RawMessage(text)
			if s := new(saved); json.Unmarshal(state, s) == nil { // whole, so that only this is wrong with it
				state, _ = reexec.Seal(linkPart, s)
			}
			if l, err := p.RestoreLink(b, 0, nil, state); err == nil {
				t.Errorf("it is restored: %+v", l)
			}
		})
	}
}

// TestNothingMoves: while reexec.Lock is held, nothing is heard and nothing is sent, whatever a worker
// does and whatever is due, and all of that happens afterwards.
func TestNothingMoves(t *testing.T) {
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	l, w := p.openLink(t)
	full, reader := p.openLink(t)
	reader.joins(full, "u")
	w.listens()
	hs, _ := connect(t, 3)
	deliver(t, l, hs)
	w.takes()
	w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`)
	message := fmt.Sprintf(`{"type":3,"uid":"v","data":%q,"source":"_sio_adapter"}`, strings.Repeat("x", 1<<20))
	another := `{"type":3,"uid":"v","source":"_sio_adapter"}`
	w.say(message + "\n")
	see(t, "a full channel", full, func() bool { return len(full.outbox.rest) > 0 })
	look := func() string {
		var texts []string
		for _, link := range []*Link{l, full} {
			state, err := link.Save(reexec.NewBundle("this"))
			if err != nil {
				t.Error(err)
			}
			text, _ := json.Marshal(state)
			texts = append(texts, string(text))
		}
		return strings.Join(texts, "\n")
	}

	reexec.Lock.Lock()
	before := look()
	heard := make(chan string)
	go func() { heard <- string(reader.hearLine()) }() // which makes room
	w.say(another + "\n")
	w.Close()
	time.Sleep(2 * pause) // what is due
	l.channel.raw.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); n <= len(another) || err != nil {
			t.Errorf("%d bytes are left to be heard, error %v", n, err)
		}
	})
	if after := look(); after != before || fdtest.IsClosed(l.Left()) {
		t.Error("something moved")
	}
	reexec.Lock.Unlock()

	if text := <-heard; text != message {
		t.Errorf("heard %.100q", text)
	}
	reader.hears(another)
	fdtest.Closed(t, "leaving", l.Left())
	r.want(t, hs)
}
