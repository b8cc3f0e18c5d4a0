package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// visitor is a client with a cookie that names its worker, which may change its address at any time.
type visitor struct {
	b      *instance
	cookie string
	conn   *keptConn // it may share it with others
	seen   answer    // the last one
}

// anywhere is a random address to connect from.
func anywhere() netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1 + byte(rand.IntN(200)), byte(rand.IntN(256)), 1 + byte(rand.IntN(250))})
}

// visit makes a request, by the open connection or by another one from another address.
func (v *visitor) visit(anew bool) answer {
	t := v.b.t
	t.Helper()
	if anew || v.conn.Conn == nil {
		v.conn.close()
		conn, err := v.b.dial(anywhere())
		if err != nil {
			t.Fatal(err)
		}
		v.conn.Conn, v.conn.lines = conn, bufio.NewReader(conn)
	}
	v.conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(v.conn, "GET / HTTP/1.1\r\nHost: test\r\nCookie: route="+v.cookie+"\r\n\r\n")
	resp, err := http.ReadResponse(v.conn.lines, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Cookies() {
		v.cookie = c.Value
	}
	if v.seen, err = readAnswer(resp); err != nil || v.seen.status != http.StatusOK {
		t.Fatalf("%+v, %v", v.seen, err)
	}
	if resp.Close {
		v.conn.close()
	}
	return v.seen
}

// stays makes requests, which the same worker has to answer as before.
func (v *visitor) stays(requests int) {
	v.b.t.Helper()
	want := v.seen
	for i := range requests {
		if got := v.visit(i%2 == 0); got.pid != want.pid {
			v.b.t.Fatalf("a session of worker %d, slot %d, generation %d is with %d, slot %d, generation %d", want.pid, want.slot, want.generation, got.pid, got.slot, got.generation)
		}
	}
}

// setsCookie is a Node program that keeps sessions by a cookie.
const setsCookie = `
server.prependListener('request', (req, res) => {
	if (!/route=.+/.test(req.headers.cookie)) res.setHeader('Set-Cookie', 'route=any.' + process.env.HANDFAST_ROUTE);
});
`

// TestSessions: each request of a session finds the worker that its id names, from whatever address and on whatever connection, also while
// a reload replaces it, and over an upgrade. New clients go to new workers. Without requests the old ones end, and the sessions of a worker that is
// no more are with the one in its slot.
func TestSessions(t *testing.T) {
	t.Parallel()
	const slots, idle = 3, 8 * time.Second
	flags := []string{"--session", "cookie:route", "--session-idle", idle.String()}
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		start(t, slots, options{flags: flags}).trySessions(slots)
	})
	t.Run("Node", func(t *testing.T) {
		t.Parallel()
		startNode(t, slots, setsCookie+plain, nodeOptions{flags: flags}).trySessions(slots)
	})
}

// trySessions puts a balancer through all that can happen to its workers, which keep sessions by the cookie "route".
func (b *instance) trySessions(slots int) {
	t := b.t
	const visitors = 9
	var all []*visitor
	shared := new(keptConn)
	defer shared.close()
	for range visitors {
		v := &visitor{b: b, conn: new(keptConn)}
		defer v.conn.close()
		v.visit(true)
		all = append(all, v)
	}
	stay := func() {
		t.Helper()
		for _, v := range all {
			v.stays(4)
		}
		for range 2 {
			for _, v := range all { // over one connection, as a proxy's pool or an agent's
				(&visitor{b, v.cookie, shared, v.seen}).stays(1)
			}
		}
	}
	stay()

	b.signal(unix.SIGUSR2)
	for len(b.log("reload finished")) == 0 {
		stay()
	}
	stay()
	young := &visitor{b: b, conn: shared} // by the connection that old workers have had
	if got := young.visit(false); got.generation != 2 {
		t.Errorf("a new client is with generation %d", got.generation)
	}
	for _, w := range b.status().Draining {
		if w.State != "lingering" || w.Generation != 1 {
			t.Errorf("%+v, want workers of generation 1 that linger", w)
		}
	}
	stay()
	before := b.status().Sessions
	b.upgrades(1)
	stay()
	if now := b.status().Sessions; before.ToWorker == 0 || now.ToWorker <= before.ToWorker || now.ToSuccessor != 0 {
		t.Errorf("sessions: %+v, and before the upgrade %+v", now, before)
	}
	if got := strings.TrimSpace(b.tell("slot", "x."+all[0].cookie)); got != strconv.Itoa(all[0].seen.slot) {
		t.Errorf("handfast slot says %q of a session in slot %d", got, all[0].seen.slot)
	}
	for _, v := range all { // or they would have to be told to
		v.conn.close()
	}
	shared.close()
	b.awaitCount("worker exited", slots)
	for _, v := range all {
		before := v.seen
		if got := v.visit(true); got.slot != before.slot || got.generation != 2 {
			t.Errorf("a session of slot %d is with %+v", before.slot, got)
		}
	}
	stay()

	kill(t, b.worker(0))
	b.awaitCount("worker ready", 2*slots+1)
	for _, v := range all {
		before := v.seen
		if got := v.visit(true); got.slot != before.slot || got.slot != 0 && got.pid != before.pid {
			t.Errorf("a session of worker %d, slot %d, is with %+v", before.pid, before.slot, got)
		}
	}
	stay()
	if s := b.status(); s.Totals.Refused > 0 || s.Sessions.ToSuccessor == 0 {
		t.Errorf("totals %+v, sessions %+v", s.Totals, s.Sessions)
	}
}

// TestSessionOnOneConnection: requests on one connection, as of a browser that polls, are requests that come back, too: their worker
// lingers as long as there are any.
func TestSessionOnOneConnection(t *testing.T) {
	t.Parallel()
	const idle = 1500 * time.Millisecond // more than workers take to report it
	b := start(t, 1, options{flags: []string{"--session", "cookie:route", "--session-idle", idle.String()}})
	v := &visitor{b: b, conn: new(keptConn)}
	defer v.conn.close()
	first := v.visit(true)
	b.showsRequests("each")
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for began := time.Now(); time.Since(began) < 2*idle; {
		before := time.Now()
		if got := v.visit(false); got.pid != first.pid && time.Since(before) < idle/4 {
			t.Fatalf("a session of worker %d, generation %d, is with %d, generation %d, after %v", first.pid, first.generation, got.pid, got.generation, time.Since(began))
		}
		if v.conn.Conn == nil {
			t.Fatalf("the worker has closed the connection after %v", time.Since(began))
		}
		time.Sleep(idle / 20) // as a client that polls
	}
	b.await("worker exited") // its connection is idle
}

// showsRequests wants status and metrics to say which requests decide.
func (b *instance) showsRequests(which string) {
	b.t.Helper()
	if got := b.status().Requests(); got != which {
		b.t.Errorf("%q requests decide, want %q", got, which)
	}
	want := map[string]string{"first": "\nhandfast_worker_hands_back{slot=\"0\"} 0\n", "each": "\nhandfast_worker_hands_back{slot=\"0\"} 1\n"}[which]
	if text := b.metrics(); !strings.Contains(text, want) {
		b.t.Errorf("no %q in\n%s", want, text)
	}
}

// TestDrainNow: status shows who lingers, and drain --now ends it, for some or for all: their sessions are then with the workers in their slots.
func TestDrainNow(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--session", "cookie:route", "--session-idle", "1h"}})
	v := &visitor{b: b, conn: new(keptConn)}
	defer v.conn.close()
	first := v.visit(true)
	b.tell("reload")
	if text := b.tell("status"); !strings.Contains(text, "generation 1: 2 lingering for its clients since ") || !regexp.MustCompile(fmt.Sprintf(`(?m)^%d +lingering +%d +1 `, first.slot, first.pid)).MatchString(text) {
		t.Errorf("status\n%s", text)
	}
	v.stays(2)
	for _, c := range []struct {
		flags []string
		want  int
	}{{[]string{"--generation", "2"}, 0}, {[]string{"--slot", fmt.Sprint(1 - first.slot)}, 1}, {[]string{"--slot", fmt.Sprint(1 - first.slot)}, 0}, {nil, 1}} {
		text := b.tell("drain", append([]string{"--now"}, c.flags...)...)
		if want := fmt.Sprintf("workers that lingered and drain now: %d\n", c.want); !strings.HasSuffix(text, want) {
			t.Errorf("%v: %s", c.flags, text)
		}
		if c.flags != nil {
			v.stays(1)
		}
	}
	if got := v.visit(true); got.slot != first.slot || got.generation != 2 {
		t.Errorf("a session of slot %d is with %+v", first.slot, got)
	}
}

// TestNewSessions: clients behind one address that begin a session go to the worker with the fewest connections.
func TestNewSessions(t *testing.T) {
	t.Parallel()
	const slots, each = 3, 4
	b := start(t, slots, options{flags: []string{"--session", "cookie:route", "--new-sessions", "least"}})
	in := make(map[int]int)
	for range slots * each {
		v := &visitor{b: b, conn: new(keptConn)}
		v.conn.Conn, _ = b.dial(proxyAt)
		v.conn.lines = bufio.NewReader(v.conn)
		defer v.conn.close()
		in[v.visit(false).slot]++
		if v.stays(2); v.conn.Conn == nil {
			t.Error("the connection is closed")
		}
	}
	for slot := range slots {
		if in[slot] != each {
			t.Errorf("slots have %v clients, want %d each", in, each)
		}
	}
}

// TestDrainAffinity: clients that a worker has served go back to it after a reload, and others to the new one; until that is ended.
func TestDrainAffinity(t *testing.T) {
	t.Parallel()
	const slots = 2
	b := start(t, slots, options{flags: []string{"--drain-affinity", "1h"}})
	var known []netip.Addr
	seen := make(map[netip.Addr]answer)
	for i := range 8 {
		known = append(known, netip.AddrFrom4([4]byte{127, 3, 0, byte(1 + i)}))
		seen[known[i]] = b.mustGet(known[i], "/")
	}
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for range 3 {
		for _, client := range known {
			if got := b.mustGet(client, "/"); got.pid != seen[client].pid {
				t.Errorf("%v was with worker %d, and is with %d of generation %d", client, seen[client].pid, got.pid, got.generation)
			}
		}
		if got := b.mustGet(netip.AddrFrom4([4]byte{127, 4, 0, 1}), "/"); got.generation != 2 {
			t.Errorf("a new client is with generation %d", got.generation)
		}
	}
	b.tell("drain", "--now")
	b.awaitCount("worker exited", slots)
	for _, client := range known {
		if got := b.mustGet(client, "/"); got.generation != 2 || got.slot != seen[client].slot {
			t.Errorf("%v is with %+v", client, got)
		}
	}
}

// TestSessionOnOneConnectionOfAnyServer: a server that knows nothing of handfast is left as it is while a client asks it by one connection,
// although nobody but the server sees its requests.
func TestSessionOnOneConnectionOfAnyServer(t *testing.T) {
	t.Parallel()
	const idle = time.Second
	b := startInjected(t, 1, options{flags: []string{"--session", "cookie:route", "--session-idle", idle.String(), "--drain-signal", "TERM"}})
	v := &visitor{b: b, conn: new(keptConn)}
	defer v.conn.close()
	first := v.visit(true)
	b.showsRequests("first")
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for began := time.Now(); time.Since(began) < 3*idle; {
		before := time.Now()
		if got := v.visit(false); (got.pid != first.pid || v.conn.Conn == nil) && time.Since(before) < idle/4 {
			t.Fatalf("a session of worker %d, generation %d, is with %d, generation %d, after %v", first.pid, first.generation, got.pid, got.generation, time.Since(began))
		}
		time.Sleep(idle / 20) // as a client that polls
	}
	v.conn.close()
	b.await("worker exited")
}
