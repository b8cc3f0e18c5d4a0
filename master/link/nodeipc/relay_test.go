package nodeipc

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// greeting is how an adapter begins.
const greeting = `{"type":1,"uid":%q,"nsp":"/","source":"_sio_adapter"}`

// joins sends the greetings of adapters. All is done when it returns.
func (w *fakeWorker) joins(l *Link, uids ...string) {
	w.t.Helper()
	for _, uid := range uids {
		w.sayf(greeting, uid)
	}
	w.understood(l)
}

// understood waits until the master has heard what the worker has said: it asks something,
// and skips what others say until the answer.
func (w *fakeWorker) understood(l *Link) {
	w.t.Helper()
	seq := rand.Int64()
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","port":%d,"addressType":4,"fd":99,"seq":%d}`, port, seq)
	for {
		if m := w.hear(); m.Ack != nil && *m.Ack == seq {
			return
		}
	}
}

// hears fails the test unless these are the next messages, byte by byte.
func (w *fakeWorker) hears(want ...string) {
	w.t.Helper()
	for _, text := range want {
		if got := string(w.hearLine()); got != text {
			w.t.Fatalf("heard %.200q, want %.200q", got, text)
		}
	}
}

// hearsNothing fails the test if something came before the answer to a question.
func (w *fakeWorker) hearsNothing() {
	w.t.Helper()
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","port":%d,"addressType":4,"fd":99,"seq":123456}`, port)
	if m := w.hear(); m.Ack == nil || *m.Ack != 123456 {
		w.t.Fatalf("heard %+v", m)
	}
}

// team opens n workers that have joined, each with an adapter named u0, u1...
func team(t testing.TB, n int, log hclog.Logger) (p testPrimary, ls []*Link, ws []*fakeWorker) {
	t.Helper()
	p = newPrimary(t, ReadyAuto, new(returned), log)
	for i := range n {
		l, w := p.openLink(t)
		w.joins(l, fmt.Sprint("u", i))
		ls, ws = append(ls, l), append(ws, w)
	}
	for i, w := range ws { // the greetings
		w.understood(ls[i])
	}
	return p, ls, ws
}

// TestRelay: what an adapter says reaches all others as it was said, and an answer only who
// had asked.
func TestRelay(t *testing.T) {
	p, ls, ws := team(t, 3, hclog.NewNullLogger())
	_, silent := p.openLink(t)
	broadcast := "{ \"source\" : \"_sio_adapter\", \"type\":3,\"uid\":\"u0\",\"data\":{\"text\":\"\\u00e9 é <&>\",\"n\":1.0e2,\"n\":9007199254740993}}  "
	ws[0].say(broadcast + "\n")
	ws[1].hears(broadcast)
	ws[2].hears(broadcast)
	ws[0].hearsNothing()

	ws[2].joins(ls[2], "of another namespace")
	ws[0].hears(fmt.Sprintf(greeting, "of another namespace"))
	ws[1].hears(fmt.Sprintf(greeting, "of another namespace"))
	for _, kind := range []int{8, 9, 10, 11, 12} { // versions number them differently
		answer := fmt.Sprintf(`{"type":%d,"uid":"u1","requesterUid":"of another namespace","source":"_sio_adapter"}`, kind)
		ws[1].say(answer + "\n")
		ws[2].hears(answer)
	}
	ws[0].joins(ls[0], "of another namespace") // it is not the first
	ws[1].hears(fmt.Sprintf(greeting, "of another namespace"))
	ws[2].hears(fmt.Sprintf(greeting, "of another namespace"))
	answer := `{"type":8,"uid":"u1","requesterUid":"of another namespace","source":"_sio_adapter"}`
	ws[1].say(answer + "\n" + strings.Replace(answer, "of another namespace", "of nobody", 1) + "\n")
	ws[2].hears(answer)
	for _, text := range []string{
		`{"type":3,"uid":"u0","source":"_sio"}`,
		`{"type":3,"uid":"u0","data":{"source":"_sio_adapter"}}`,
		`["_sio_adapter"]`, `"_sio_adapter"`, `{"source":["_sio_adapter"]}`, `{"source":"_sio_adapter"`,
	} {
		ws[0].say(text + "\n")
	}
	for _, w := range append(ws, silent) {
		w.hearsNothing()
	}
}

// TestRelayMembers: a worker that drains hears on and is heard, one that has gone does not hold up others, and
// its adapters' names are free.
func TestRelayMembers(t *testing.T) {
	_, ls, ws := team(t, 3, hclog.NewNullLogger())
	ls[1].Drain()
	ws[1].hear()
	ws[1].hear()
	ws[1].sayf(greeting, "u1")
	ws[0].hears(fmt.Sprintf(greeting, "u1"))
	ws[2].hears(fmt.Sprintf(greeting, "u1"))
	ws[0].sayf(greeting, "u0")
	ws[1].hears(fmt.Sprintf(greeting, "u0"))
	ws[2].hears(fmt.Sprintf(greeting, "u0"))
	// Its last words, which only Close may hear.
	ls[1].mu.Lock()
	farewell := `{"type":13,"uid":"u1","source":"_sio_adapter"}`
	ws[1].say(farewell + "\n")
	ls[1].mu.Unlock()
	ws[1].Close()
	ls[1].Close()
	ws[0].hears(farewell)
	ws[2].hears(farewell)
	ws[2].joins(ls[2], "u1")
	ws[0].hears(fmt.Sprintf(greeting, "u1"))
	ws[0].say(`{"requesterUid":"u1","source":"_sio_adapter"}` + "\n")
	ws[2].hears(`{"requesterUid":"u1","source":"_sio_adapter"}`)
}

// TestRelayUIDs: a worker may announce any number of adapters; only so many are kept, its
// latest among them, and others lose none.
func TestRelayUIDs(t *testing.T) {
	p, ls, ws := team(t, 2, hclog.NewNullLogger())
	var all strings.Builder
	for i := range 3*maxUIDs + 1 {
		fmt.Fprintf(&all, `{"uid":"%d","requesterUid":"x","source":"_sio_adapter"}`+"\n", i)
	}
	fmt.Fprintf(&all, `{"uid":%q,"requesterUid":"x","source":"_sio_adapter"}`+"\n", strings.Repeat("u", maxUID+1))
	ws[0].say(all.String())
	ws[0].understood(ls[0])
	ws[1].say(`{"requesterUid":"` + strconv.Itoa(3*maxUIDs) + `","source":"_sio_adapter"}` + "\n")
	ws[0].hears(`{"requesterUid":"` + strconv.Itoa(3*maxUIDs) + `","source":"_sio_adapter"}`)
	ws[0].say(`{"requesterUid":"u1","source":"_sio_adapter"}` + "\n")
	ws[1].hears(`{"requesterUid":"u1","source":"_sio_adapter"}`)
	p.relay.mu.Lock()
	defer p.relay.mu.Unlock()
	if n := len(p.relay.owners); n > maxUIDs+1 || p.relay.links[ls[0]] != n-1 {
		t.Errorf("%d names are kept, %d are counted", n, p.relay.links[ls[0]])
	}
}

// TestRelayStopped: a worker that does not read misses what exceeds the limit, which is said.
// The others get all. When it reads on it gets what had come first, and what comes then.
func TestRelayStopped(t *testing.T) {
	var log fdtest.Log
	begin := time.Now()
	_, ls, ws := team(t, 3, hclog.New(&hclog.LoggerOptions{Output: &log}))
	const size = 16 << 10
	const count = maxRelayed/size + 100
	filler := strings.Repeat("x", size)
	message := func(i int) string {
		return fmt.Sprintf(`{"n":%d,"source":"_sio_adapter","data":"%s"}`, i, filler)
	}
	var speaking sync.WaitGroup
	speaking.Go(func() {
		for i := range count {
			ws[0].say(message(i) + "\n")
		}
	})
	for i := range count { // ws[1] is stopped
		ws[2].hears(message(i))
	}
	speaking.Wait()
	ls[1].mu.Lock()
	waiting := ls[1].outbox.relayedSize
	ls[1].reportMissed()
	ls[1].mu.Unlock()
	missed := 0
	for _, report := range strings.Split(log.String(), "dropped=")[1:] {
		n, _ := strconv.Atoi(strings.Fields(report)[0])
		missed += n
	}
	if waiting > maxRelayed+size+1000 || missed < 50 {
		t.Errorf("%d bytes wait, %d messages are dropped", waiting, missed)
	}
	for i := range count - missed {
		ws[1].hears(message(i))
	}
	ws[2].say(message(-1) + "\n")
	ws[1].hears(message(-1))
	if n := strings.Count(log.String(), "dropped="); n > 1+int(time.Since(begin)/missedDelay) {
		t.Errorf("the log says it %d times", n)
	}
}

// TestRelayTurns: connections and others' messages wait for each other by turns.
func TestRelayTurns(t *testing.T) {
	_, ls, ws := team(t, 2, hclog.NewNullLogger())
	key := ws[1].listens()
	message := fmt.Sprintf(`{"source":"_sio_adapter","data":%q}`, strings.Repeat("x", 1<<20))
	const messages = 12
	for range messages {
		ws[0].say(message + "\n")
	}
	ws[0].understood(ls[0]) // all wait, but for what the channel holds
	hs, _ := connect(t, messages-2)
	deliver(t, ls[1], hs)
	ws[1].hears(message)
	for i := range messages - 2 {
		m := ws[1].hear() // one at least is under way already
		if i == 0 && m.Cmd == "" {
			m = ws[1].hear()
		}
		if m.inner().Key != key {
			t.Fatalf("connection %d: heard %+v", i, m)
		}
		unix.Close(m.fd)
		ws[1].accepts(m.inner().Seq)
		if i < messages-3 {
			ws[1].hears(message)
		}
	}
}

// TestRelayCrowd: all talk to all over small channels, while connections come and workers end.
// Nothing waits for ever.
func TestRelayCrowd(t *testing.T) {
	const workers, each = 6, 200
	p, ls, ws := team(t, workers, hclog.NewNullLogger())
	for _, l := range ls {
		l.channel.raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1) })
	}
	var all sync.WaitGroup
	for i, w := range ws {
		all.Go(func() {
			for n := range each {
				w.sayf(`{"from":%d,"n":%d,"source":"_sio_adapter","data":%q}`, i, n, strings.Repeat("x", rand.IntN(10_000)))
			}
		})
		all.Go(func() {
			for range each * (workers - 1) {
				if w.hearLine() == nil {
					t.Error("the master has gone")
					return
				}
			}
		})
	}
	all.Go(func() {
		for range 20 {
			l, err := p.Open(1, nil)
			if err != nil {
				t.Error(err)
				return
			}
			l.handle([]byte(fmt.Sprintf(greeting, "guest"))) // its greeting reaches all
			hs, _ := connect(t, 3)
			if n, _ := reexectest.Passing(l.Deliver)(hs); n < len(hs) {
				fdpass.CloseHandoffs(hs[n:])
			}
			l.Close()
		}
	})
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(6 * timeout):
		t.Fatal("they wait for each other")
	}
}

// TestDoesNotRead: a worker that asks and does not read the answers is cut off.
func TestDoesNotRead(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.listens()
	hs, _ := connect(t, 2)
	deliver(t, l, hs)
	seq := w.takes()
	query := fmt.Sprintf(`{"cmd":"NODE_CLUSTER","act":"queryServer","index":1,"data":%q,"address":"127.0.0.1","port":%d,"addressType":4,"seq":1}`, strings.Repeat("d", 10_000), port) + "\n"
	for !fdtest.IsClosed(l.Left()) {
		if _, err := unix.SendmsgN(w.fd, []byte(query), nil, nil, unix.MSG_NOSIGNAL); err != nil {
			t.Fatal(err)
		}
	}
	if l.Err() != ErrDoesNotRead {
		t.Errorf("left with %v", l.Err())
	}
	w.accepts(seq)
	l.Drain()
	for w.hearLine() != nil { // until its end
	}
	w.Close()
	l.Close()
	r.want(t, hs[1:])
}
