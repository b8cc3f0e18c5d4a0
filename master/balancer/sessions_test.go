package balancer

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

var sessionA = clientip.NameSession("a")

// tlsHello is what no HTTP request begins with.
const tlsHello = "\x16\x03\x01"

func TestSessions(t *testing.T) {
	var s Sessions
	a, b := busyWorker("a"), busyWorker("b")
	if s.Any() || s.Owner(sessionA) != nil {
		t.Error("sessions at the start")
	}
	s.Claim(sessionA, a, 0)
	s.Claim(sessionA, b, 0) // which is a's
	s.Release(sessionA, b)
	if s.Owner(sessionA) != a || s.Owner(0) != nil || !s.Any() {
		t.Error("a does not keep its session")
	}
	s.Release(sessionA, a)
	if s.Owner(sessionA) != nil || !s.Any() {
		t.Error("a still keeps it")
	}
}

// TestSessionOwner: a request goes to the worker that keeps its session, from whatever
// address, and in one piece or not; all others go by their address.
func TestSessionOwner(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, busyWorker("zero"))
	table.Fill(1, busyWorker("one"))
	_, dial, _ := serveTest(t, table, func(c *Config) { c.Clients.HeaderTimeout = testPatience })
	conn := dial(1)
	reads(t, conn, "one") // before there is a session nobody looks
	owner := busyWorker("owner")
	table.Claim(sessionA, owner, 0)
	conn = dial(2) // the last one that is not looked at, perhaps
	io.WriteString(conn, tlsHello)
	begins(t, conn, "zero")
	for _, cut := range []int{0, 1, 10} {
		conn := dial(2)
		const head = "GET /?sid=a HTTP/1.1\r\nHost: a\r\n\r\n"
		io.WriteString(conn, head[:cut])
		io.WriteString(conn, head[cut:])
		begins(t, conn, "owner")
	}
	for _, head := range []string{"GET / HTTP/1.1\r\n\r\n", "GET /?sid=b HTTP/1.1\r\n\r\n", tlsHello} {
		conn := dial(3)
		io.WriteString(conn, head)
		begins(t, conn, "one")
	}
	table.Release(sessionA, owner)
	conn = dial(2)
	io.WriteString(conn, "GET /?sid=a HTTP/1.1\r\n\r\n")
	begins(t, conn, "zero")
}

// closedWorker takes nothing any more.
type closedWorker struct{}

func (closedWorker) Deliver([]fdpass.Handoff) (int, error) { return 0, fdpass.ErrClosed }

// TestSessionOwnerGone: when the owner has just gone, the request goes by its address; when
// it is behind, the request waits for it.
func TestSessionOwnerGone(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, busyWorker("slot"))
	b, dial, _ := serveTest(t, table, func(c *Config) { c.RetryDelay = time.Millisecond })
	table.Claim(sessionA, closedWorker{}, 0)
	conn := dial(1)
	fmt.Fprint(conn, "GET /?sid=a HTTP/1.1\r\n\r\n")
	begins(t, conn, "slot")

	full := &fakeWorker{name: "owner"}
	sessionB := clientip.NameSession("b")
	table.Claim(sessionB, full, 0)
	conn = dial(1)
	fmt.Fprint(conn, "GET /?sid=b HTTP/1.1\r\n\r\n")
	if !fdtest.Poll(func() bool { return b.Stats().Parked == 1 }) {
		t.Error("it does not wait for its owner")
	}
	full.mu.Lock()
	full.room = 1
	full.mu.Unlock()
	begins(t, conn, "owner")
}

// TestSilentCrowd: clients that say nothing use up no more than the waitlist, and go by their addresses: at once if
// there is no room, or else when the header timeout is over. Nobody is refused for a session that it does not have.
func TestSilentCrowd(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, busyWorker("slot"))
	b, dial, _ := serveTest(t, table, func(c *Config) { c.MaxParked = 4; c.Clients.HeaderTimeout = 100 * time.Millisecond })
	table.Claim(sessionA, busyWorker("owner"), 0)
	for range 12 {
		dial(1)
	}
	var conns []net.Conn
	for i := range 12 {
		conns = append(conns, dial(byte(2+i)))
	}
	for _, conn := range conns {
		begins(t, conn, "slot")
	}
	if s := b.Stats(); s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// lockedWorker takes connections under a lock.
type lockedWorker struct{ sync.Mutex }

func (w *lockedWorker) Deliver(conns []fdpass.Handoff) (int, error) {
	w.Lock()
	defer w.Unlock()
	fdpass.CloseHandoffs(conns)
	return len(conns), nil
}

// TestReadmitUnderLock: a worker's link may give connections back under the lock under which it
// takes them, also when nobody may wait for a request line.
func TestReadmitUnderLock(t *testing.T) {
	table := NewTable(1)
	w := new(lockedWorker)
	table.Fill(0, w)
	cfg := DefaultConfig()
	cfg.MaxParked = 0
	b, err := New(cfg, table)
	if err != nil {
		t.Fatal(err)
	}
	table.Claim(sessionA, w, 0)
	ours, theirs := fdtest.TCPPair(t)
	defer ours.Close()
	defer theirs.Close()
	returned := make(chan struct{})
	w.Lock()
	go func() {
		readmit(b, []fdpass.Handoff{{FD: fdtest.Duplicate(t, theirs), Client: netip.MustParseAddrPort("127.0.0.1:1")}})
		close(returned)
	}()
	select {
	case <-returned:
	case <-time.After(testPatience):
		t.Error("Readmit waits for the worker")
	}
	w.Unlock()
	ours.Close()
	b.Shutdown(t.Context())
}

// tokenHead is a request of a session whose id ends in a name's token.
func tokenHead(names *clientip.Names, name clientip.Name) string {
	return "GET /?sid=x." + names.Token(name).String() + " HTTP/1.1\r\nHost: a\r\n\r\n"
}

// bySid has ids of sessions name workers.
func bySid(names *clientip.Names) func(*Config) {
	return func(c *Config) {
		c.Clients.Rules.Sessions, _ = forwarded.ParseSessions("engine.io")
		c.Clients.Names = names
	}
}

// TestNamed: a request goes to the worker that its session's id names, from whatever address, also when that is in no slot any
// more; then to the one in the slot that the id names; and by its client, if there is no such slot, or the id is nobody's.
func TestNamed(t *testing.T) {
	names := clientip.NewNames([clientip.SecretSize]byte{1})
	zero, one, gone := clientip.Name{Slot: 0, Generation: 1, Start: 1}, clientip.Name{Slot: 1, Generation: 1, Start: 2}, clientip.Name{Slot: 7, Generation: 1, Start: 3}
	table := NewTable(2)
	first := busyWorker("zero")
	table.Fill(0, first)
	table.Fill(1, busyWorker("one"))
	table.Name(zero, first)
	_, dial, _ := serveTest(t, table, bySid(names))
	asks := func(last byte, head, want string) {
		t.Helper()
		conn := dial(last)
		io.WriteString(conn, head)
		begins(t, conn, want)
	}
	if !table.LastNamed(zero).IsZero() {
		t.Error("it was named before")
	}
	asks(3, tokenHead(names, zero), "zero")
	if since := time.Since(table.LastNamed(zero)); since < 0 || since > testPatience {
		t.Errorf("it was named last %v ago", since)
	}
	asks(3, "GET / HTTP/1.1\r\n\r\n", "one")
	asks(3, tokenHead(clientip.NewNames([clientip.SecretSize]byte{2}), zero), "one")
	asks(3, tokenHead(names, gone), "one")
	asks(2, tokenHead(names, one), "one") // of a worker that is no more

	if before := table.Fill(0, busyWorker("next")); before != Worker(first) {
		t.Errorf("%v was there before", before)
	}
	asks(3, tokenHead(names, zero), "zero")
	asks(2, "GET / HTTP/1.1\r\n\r\n", "next")
	table.Unname(zero)
	asks(3, tokenHead(names, zero), "next")
	if !table.LastNamed(zero).IsZero() {
		t.Error("it is still there")
	}
	table.Resize(1)
	asks(2, tokenHead(names, one), "next")
}

// TestKeepClients: a client goes back to the worker that has served it, although that was replaced, as long as it comes in time; a new client
// goes to the new worker.
func TestKeepClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable(1)
		table.KeepClients(time.Minute)
		old, young := new(sink), new(sink)
		name, next := clientip.Name{Slot: 0, Generation: 1, Start: 1}, clientip.Name{Slot: 0, Generation: 2, Start: 2}
		table.Name(name, old)
		table.Name(next, young)
		table.Fill(0, old)
		b, _ := New(DefaultConfig(), table)
		r := b.newRouter()
		comes := func(key hash.Key, want *sink) {
			t.Helper()
			before := want.taken
			reexec.Lock.RLock()
			defer reexec.Lock.RUnlock()
			r.route([]connection{{Handoff: fdpass.Handoff{FD: -1}, client: clientip.Client{Key: key}}})
			if want.taken != before+1 {
				t.Errorf("client %d has gone to the other worker", key)
			}
		}
		comes(1, old)
		comes(2, old)
		table.Fill(0, young)
		for range 3 {
			time.Sleep(50 * time.Second)
			comes(1, old)
		}
		comes(2, young) // forgotten
		comes(3, young)
		for i := range hash.Key(affinityWays - 1) {
			comes(1+(i+1)*affinitySize, young)
		}
		comes(1, old)
		time.Sleep(time.Nanosecond)
		for i := range hash.Key(affinityWays) {
			comes(1+(i+1+affinityWays)*affinitySize, young) // which take all places of the first one's group
		}
		comes(1, young)
		if time.Since(table.LastNamed(name)) > time.Nanosecond {
			t.Error("nobody has come back to the old one now")
		}
		table.Fill(0, old) // the new one has failed on probation
		table.Unname(next)
		comes(2, old)
		table.Unname(name)
		table.Fill(0, young)
		comes(2, young)
	})
}

// TestKeepClientsMeanwhile: nor does a client go to the new worker that takes the slot over while a batch is placed.
func TestKeepClientsMeanwhile(t *testing.T) {
	table := NewTable(1)
	table.KeepClients(time.Minute)
	old, young := new(sink), new(sink)
	replacing := &acting{act: func() { table.Fill(0, young) }}
	names := map[Worker]clientip.Name{old: {Generation: 1, Start: 1}, young: {Generation: 2, Start: 2}, replacing: {Generation: 1, Start: 3}}
	for w, name := range names {
		table.Name(name, w)
	}
	table.Fill(0, old)
	b, _ := New(DefaultConfig(), table)
	r := b.newRouter()
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	client := connection{Handoff: fdpass.Handoff{FD: -1}, client: clientip.Client{Key: 1}}
	r.route([]connection{client})
	r.route([]connection{client, {Handoff: fdpass.Handoff{FD: -1}, client: clientip.Client{Name: names[replacing]}}})
	r.route([]connection{client})
	if old.taken != 3 || young.taken != 0 || replacing.taken != 1 {
		t.Errorf("the old worker was handed %d connections, the new one %d; want 3 and 0", old.taken, young.taken)
	}
}

// acting is a worker that does something when it is handed a connection.
type acting struct {
	sink
	act func()
}

func (a *acting) Deliver(conns []fdpass.Handoff) (int, error) {
	a.act()
	return a.sink.Deliver(conns)
}

// teller is a worker that says how many connections it has open.
type teller struct {
	sink
	open int
	ok   bool
}

func (w *teller) OpenConnections() (int, bool) { return w.open, w.ok }

// TestTurns: each slot has one in a round, and over many rounds those that have every second or every fourth turn are all.
func TestTurns(t *testing.T) {
	for slots := 1; slots < 9; slots++ {
		for step := 1; step < 9; step++ {
			const n = 1 << 14
			in := make([]int, slots)
			for i := range n {
				in[turnOf(uint32(i*step), slots)]++
			}
			for slot, taken := range in {
				if mean := n / slots; taken < mean*9/10 || taken > mean*11/10+1 || step == 1 && slots == 4 && taken != mean {
					t.Errorf("slot %d of %d has %d of %d turns, every one of %d counted", slot, slots, taken, n, step)
				}
			}
		}
	}
}

// TestSpread: what begins a session goes to the worker that has the fewest connections; a client that brings a key stays in its slot.
func TestSpread(t *testing.T) {
	cfg := DefaultConfig()
	bySid(clientip.NewNames([clientip.SecretSize]byte{1}))(&cfg)
	cfg.Clients.Rules.Anywhere = true
	b, err := New(cfg, NewTable(3))
	if err != nil {
		t.Fatal(err)
	}
	goes := func(client clientip.Client) int {
		c := connection{client: client}
		b.spread(&c)
		return c.place(cfg.Strategy, 3, 0)
	}
	spread := func(n int) (taken [3]int) {
		for range n {
			taken[goes(clientip.Client{Key: 5})]++
		}
		return taken
	}
	told := clientip.Client{Key: 5, Told: true}
	home := goes(told)
	for slot, workers := range [][3]Worker{
		{&teller{open: 1, ok: true}, &teller{open: 5, ok: true}, &teller{open: 5, ok: true}},
		{&teller{open: 5, ok: true}, &teller{ok: true}, &teller{open: 1, ok: true}},
		{&teller{open: 5, ok: true}, nil, &teller{open: 1, ok: true}},
	} {
		for i, w := range workers {
			b.table.Fill(i, w)
		}
		if taken := spread(30); taken[slot] != 30 {
			t.Errorf("%d: %v", slot, taken)
		}
		if goes(told) != home || goes(clientip.Client{Name: clientip.Name{Slot: 1, Start: 9}}) != 1 {
			t.Error("a client that has a slot goes elsewhere")
		}
	}
	for i := range 3 {
		b.table.Fill(i, &teller{ok: i == 0}) // nobody knows how many
	}
	b.table.Fill(0, new(sink))
	if taken := spread(30); slices.Min(taken[:]) < 9 || slices.Max(taken[:]) > 11 { // rounds may have begun before
		t.Errorf("one after the other is %v", taken)
	}
	b.table.Empty(1)
	if taken := spread(30); taken[1] != 0 {
		t.Errorf("an empty slot is given %d", taken[1])
	}
}

// TestTokensNeedNoMemory: nothing is kept of sessions whose ids name their worker, nor of ids that name one which is no more: a flood
// of them keeps nobody alive.
func TestTokensNeedNoMemory(t *testing.T) {
	table := NewTable(2)
	living, old := clientip.Name{Slot: 0, Generation: 2, Start: 2}, clientip.Name{Slot: 0, Generation: 1, Start: 1}
	w := new(sink)
	table.Name(living, w)
	table.Fill(0, w)
	key := hash.Key(0)
	comes := func(name clientip.Name) owner {
		key++
		c := connection{client: clientip.Client{Key: key, Name: name}}
		table.count(&c)
		return table.ownerOf(&c)
	}
	const sessions = 100_000
	if n := testing.AllocsPerRun(sessions, func() {
		if comes(old).worker != nil {
			t.Error("an old token has an owner")
		}
	}); n != 0 || !table.LastNamed(living).IsZero() || !table.LastNamed(old).IsZero() {
		t.Errorf("%v allocations for an old token; the living worker was named at %v", n, table.LastNamed(living))
	}
	if n := testing.AllocsPerRun(sessions, func() {
		if comes(living).worker != Worker(w) {
			t.Error("a token has another owner")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a token", n)
	}
	if len(table.owners) > 0 || len(table.named) != 1 || len(table.names) != 1 {
		t.Errorf("%d sessions and %d workers are kept", len(table.owners), len(table.named))
	}
	if toWorker, toSuccessor := table.SessionCounts(); toWorker != sessions+1 || toSuccessor != sessions+1 { // one to warm up
		t.Errorf("%d to the worker, %d to its successor", toWorker, toSuccessor)
	}
}
