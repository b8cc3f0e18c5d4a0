package nodeipc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// TestServer: a server takes connections in order, each in a message of its own, and the
// master's copy is closed when it says that it has it.
func TestServer(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	key := w.listens()
	hs, clients := connect(t, 3*window)
	deliver(t, l, hs[:window+maxQueued])
	for i := range hs {
		m := w.hear()
		in := m.inner()
		if m.Type != "net.Native" || in.Cmd != cmdCluster || in.Act != "newconn" || in.Key != key {
			t.Fatalf("offered by %+v", m)
		}
		if inode := fdtest.Inode(t, m.fd); inode != clients[i].inode {
			t.Fatalf("connection %d is another", i)
		}
		unix.Close(m.fd)
		w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
		if i == 0 && clients[0].ended() {
			t.Error("the server may refuse it, and our copy is closed")
		}
		w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true}`, in.Seq)
		gone(t, clients[i])
		if i < window {
			deliver(t, l, hs[window+maxQueued+i:][:1])
		}
	}
	w.Close()
	l.Close()
	r.want(t, nil)
}

// TestListener: a program that waits for messages has its connection with Node's own word.
func TestListener(t *testing.T) {
	l, w, r := openLink(t, ReadyStarted)
	w.starts()
	fdtest.Closed(t, "ready", l.Ready())
	hs, clients := connect(t, 3)
	deliver(t, l, hs)
	for i := range 2 {
		w.takes()
		w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
		gone(t, clients[i])
	}
	w.Close()
	r.want(t, hs[2:])
}

// TestFull: beyond window and queue connections stay the caller's. Deliver does not fail
// when something else is under way, too.
func TestFull(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.listens()
	hs, _ := connect(t, window+maxQueued+2)
	defer fdpass.CloseHandoffs(hs[window+maxQueued:])
	n, err := reexectest.Passing(l.Deliver)(hs)
	if n != window+maxQueued || !errors.Is(err, fdpass.ErrFull) {
		t.Errorf("delivered %d, error %v; want %d, fdpass.ErrFull", n, err, window+maxQueued)
	}
	w.say(queryElsewhere + "\n")
	for range window {
		w.takes()
	}
	if m := w.hear(); m.inner().Ack == nil || *m.inner().Ack != 8 {
		t.Errorf("heard %+v", m)
	} else {
		unix.Close(m.fd)
	}
	if n, err := reexectest.Passing(l.Deliver)(hs[n:]); n != 0 || !errors.Is(err, fdpass.ErrFull) {
		t.Errorf("delivered %d, error %v; want 0, fdpass.ErrFull", n, err)
	}
	w.Close()
	r.want(t, hs[:window+maxQueued])
}

// TestLastWords: what a worker said just before its end counts: what it has accepted is
// not another's, what it has not is. Its end may be seen first.
func TestLastWords(t *testing.T) {
	for i := range 50 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			l, w, r := openLink(t, ReadyAuto)
			w.listens()
			hs, clients := connect(t, 20)
			deliver(t, l, hs)
			for range 10 {
				w.accepts(w.takes())
			}
			if i%2 == 0 {
				w.Close()
			} // otherwise somebody else has the channel, too: there is no end of file
			l.Close()
			r.want(t, hs[10:])
			gone(t, clients[:10]...)
		})
	}
}

// TestLongLastWords: however long they are.
func TestLongLastWords(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.listens()
	hs, _ := connect(t, 2)
	deliver(t, l, hs)
	l.mu.Lock() // so that nothing is heard but by Close
	seq := w.takes()
	filler := `{"text":"` + strings.Repeat("x", 1000) + `"}` + "\n"
	w.say(strings.Repeat(filler, 100)) // more than one read takes
	w.accepts(seq)
	l.mu.Unlock()
	l.Close()
	r.want(t, hs[1:])
}

// TestAcks: words about what is not there change nothing, and nothing is closed twice.
func TestAcks(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.say(lines(`{"cmd":"NODE_HANDLE_ACK"}`, `{"cmd":"NODE_HANDLE_NACK"}`, `{"cmd":"NODE_CLUSTER","ack":1,"accepted":true}`))
	w.listens()
	hs, clients := connect(t, 4)
	deliver(t, l, hs)
	seqs := []int64{w.takes(), w.takes(), w.takes(), w.takes()}
	for range 4 {
		w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	}
	for _, i := range []int{2, 0, 2, 0} { // out of order, and twice
		w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true}`, seqs[i])
	}
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, seqs[2])
	for _, seq := range []string{"-1", "0", "99999", "1.5", `"1"`, "{}", "9e99"} {
		w.sayf(`{"cmd":"NODE_CLUSTER","ack":%s,"accepted":true}`, seq)
	}
	gone(t, clients[0], clients[2])
	w.Close()
	r.want(t, []fdpass.Handoff{hs[1], hs[3]})
}

// TestNack: what came without its descriptor, or was refused, is sent again after a pause.
func TestNack(t *testing.T) {
	for name, no := range map[string]func(w *fakeWorker, seq int64){
		"nack": func(w *fakeWorker, _ int64) { w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`) },
		"refused": func(w *fakeWorker, seq int64) {
			w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
			w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, seq)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, w, r := openLink(t, ReadyAuto)
			w.listens()
			hs, clients := connect(t, 3)
			deliver(t, l, hs)
			w.accepts(w.takes())
			gone(t, clients[0])
			no(w, w.takes())
			w.accepts(w.takes())
			gone(t, clients[2])
			w.accepts(w.takes())
			gone(t, clients[1])

			more, _ := connect(t, 2)
			deliver(t, l, more)
			no(w, w.takes())
			l.Drain() // while there is a pause
			no(w, w.takes())
			r.want(t, more)
		})
	}
}

// TestNackOfSharedListener: it is sent again, too, with its answer.
func TestNackOfSharedListener(t *testing.T) {
	_, w, _ := openLink(t, ReadyAuto)
	w.say(queryElsewhere + "\n")
	for _, word := range []string{cmdNack, cmdAck} {
		m := w.hear()
		if in := m.inner(); m.Type != "net.Native" || in.Ack == nil || *in.Ack != 8 || in.Errno != 0 {
			t.Fatalf("heard %+v", m)
		}
		if n, err := unix.GetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); n != 1 || err != nil {
			t.Errorf("it does not listen: %v", err)
		}
		if flags, _ := unix.FcntlInt(uintptr(m.fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
			t.Error("it blocks")
		}
		unix.Close(m.fd)
		w.sayf(`{"cmd":%q}`, word)
	}
}

// TestSmallChannel: messages that go in parts arrive whole, with their descriptors.
func TestSmallChannel(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	l.channel.raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil { // the kernel makes it the least there is
			t.Error(err)
		}
	})
	// Answers longer than the channel: an echo of the first worker's data.
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":%q,"address":null,"port":%d,"addressType":4,"seq":1}`, strings.Repeat("d", 20_000), port)
	hs, clients := connect(t, window+maxQueued)
	if m := w.hear(); len(m.Data) != 20_002 {
		t.Fatalf("the answer has %d bytes of data", len(m.Data))
	}
	deliver(t, l, hs)
	for i := range hs {
		w.accepts(w.takes())
		gone(t, clients[i])
	}
	l.Drain()
	if m := w.hear(); m.Cmd != cmdDisconnect {
		t.Errorf("heard %+v", m)
	}
	if m := w.hear(); m.Act != "disconnect" {
		t.Errorf("heard %+v", m)
	}
	r.want(t, nil)
}

// TestFullChannel: what is sent when there is no room at all is sent later, in order.
func TestFullChannel(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.listens()
	const queries = 3000
	for i := range queries { // that nobody hears the answers of
		w.sayf(`{"cmd":"NODE_CLUSTER","act":"queryServer","index":%d,"data":null,"address":null,"port":%d,"addressType":4,"seq":%d}`, 1, port, i)
	}
	fdtest.Eventually(t, "a full channel", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.outbox.answers) > 0 && l.seq > queries // all are heard
	})
	hs, clients := connect(t, 3)
	deliver(t, l, hs)
	for i := range queries {
		if m := w.hear(); m.Ack == nil || *m.Ack != int64(i) || m.Errno != -int(unix.EADDRINUSE) {
			t.Fatalf("answer %d is %+v", i, m)
		}
	}
	for i := range hs {
		w.accepts(w.takes())
		gone(t, clients[i])
	}
	r.want(t, nil)
}

// TestCut: messages are heard wherever they are cut.
func TestCut(t *testing.T) {
	text := lines(`{"cmd":"NODE_CLUSTER","act":"online","seq":0}`, fmt.Sprintf(queryFor, 1, port))
	for size := 1; size <= len(text); size += 1 + size/8 {
		_, w, _ := openLink(t, ReadyAuto)
		for part := range slices.Chunk([]byte(text), size) {
			w.say(string(part))
		}
		if m := w.hear(); m.Ack == nil || *m.Ack != 1 {
			t.Errorf("in parts of %d: %+v", size, m)
		}
		c := channel{receiving: receiving{buffer: []byte(text)}}
		heard := 0
		for rest := []byte(text); len(rest) > 0; rest = rest[min(size, len(rest)):] {
			c.split(copy(c.receiving.buffer, rest[:min(size, len(rest))]), func([]byte) { heard++ })
		}
		if heard != 2 || len(c.in) > 0 {
			t.Errorf("in parts of %d: %d lines, and %q", size, heard, c.in)
		}
	}
}

// TestGarbage: whatever a program sends, the next message is heard.
func TestGarbage(t *testing.T) {
	for name, text := range map[string]string{
		"empty lines":   "\n\n\n",
		"no JSON":       "GET / HTTP/1.1\r\n\r\n",
		"zeros":         strings.Repeat("\x00", 1000) + "\n",
		"not UTF-8":     "{\"cmd\":\"\xff\xfe\"}\n",
		"deep":          strings.Repeat("[", 100_000) + "\n",
		"other types":   lines(`null`, `1`, `"ready"`, `[{"cmd":"ready"}]`, `{"cmd":{}}`, `{"cmd":["disconnect"]}`, `{"cmd":null}`),
		"huge":          `{"text":"` + strings.Repeat("x", maxLine+1<<20) + `"}` + "\n",
		"huge, no line": strings.Repeat("x", maxLine+1<<20) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			l, w, r := openLink(t, ReadyAuto)
			hs, clients := connect(t, 1)
			w.say(text)
			w.listens()
			deliver(t, l, hs)
			w.accepts(w.takes())
			gone(t, clients...)
			if fdtest.IsClosed(l.Left()) || fdtest.IsClosed(l.Ready()) {
				t.Errorf("left: %v, ready: %v", fdtest.IsClosed(l.Left()), fdtest.IsClosed(l.Ready()))
			}
			r.want(t, nil)
		})
	}
}

// TestReady: what makes a worker ready depends on what is asked for.
func TestReady(t *testing.T) {
	online := `{"cmd":"NODE_CLUSTER","act":"online","seq":0}`
	message := `{"cmd":"ready","port":"any","ack":"none"}`
	listening := strings.Replace(fmt.Sprintf(queryFor, 1, port), "queryServer", "listening", 1)
	for when, texts := range map[ReadyWhen][2]string{
		ReadyAuto:      {online, message},
		ReadyMessage:   {lines(online, listening), message},
		ReadyListening: {lines(online, message), listening},
		ReadyStarted:   {lines(message, listening), ""},
	} {
		for _, server := range []bool{true, false} {
			l, w, _ := openLink(t, when)
			if server {
				w.listens()
			} else if when == ReadyListening {
				continue
			}
			w.say(texts[0] + "\n" + queryElsewhere + "\n")
			unix.Close(w.hear().fd) // so all was heard
			w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
			if fdtest.IsClosed(l.Ready()) {
				t.Errorf("when %d: ready too early", when)
			}
			if when == ReadyStarted {
				w.starts()
			} else {
				w.say(texts[1] + "\n")
			}
			fdtest.Closed(t, fmt.Sprintf("ready, when %d", when), l.Ready())
		}
	}
}

// TestLeft: a worker that goes by itself gets no more, and the reason is said. It is told
// to disconnect once at most: twice is an error in Node (ERR_IPC_DISCONNECTED).
func TestLeft(t *testing.T) {
	for name, test := range map[string]struct {
		says string
		why  error
		told []string // in answer, and by Drain
	}{
		"asks":          {`{"cmd":"disconnect"}`, ErrAskedFor, []string{"disconnect", "NODE_CLUSTER disconnect"}},
		"disconnects":   {`{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":3}`, ErrAskedFor, []string{"NODE_CLUSTER "}},
		"closes server": {closeServer, ErrClosedServer, []string{"disconnect", "NODE_CLUSTER disconnect"}},
	} {
		t.Run(name, func(t *testing.T) {
			l, w, r := openLink(t, ReadyAuto)
			w.listens()
			hs, _ := connect(t, window+2)
			deliver(t, l, hs)
			for range window {
				w.takes()
			}
			w.say(test.says + "\n")
			fdtest.Closed(t, "leaving", l.Left())
			if l.Err() != test.why {
				t.Errorf("left with %v, want %v", l.Err(), test.why)
			}
			r.want(t, hs[window:])
			if n, err := reexectest.Passing(l.Deliver)(hs[:1]); n != 0 || !errors.Is(err, fdpass.ErrClosed) {
				t.Errorf("delivered %d, error %v; want fdpass.ErrClosed", n, err)
			}
			l.Drain()
			l.Drain()
			for _, want := range test.told {
				if m := w.hear(); strings.TrimSuffix(m.Cmd+" "+m.Act, " ") != strings.TrimSuffix(want, " ") {
					t.Errorf("told %+v, want %s", m, want)
				}
			}
			w.Close()
			r.want(t, hs)
			l.Close()
			if rest := w.text; len(rest) > 0 {
				t.Errorf("told %q besides", rest)
			}
		})
	}
}

// TestStarted: a worker that is asked whether its program has run gets no descriptor until it has
// answered: Node would take the first one for that of the question.
func TestStarted(t *testing.T) {
	l, w, r := openLink(t, ReadyStarted)
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"online","seq":0}`)
	w.pings()
	w.say(queryElsewhere + "\n")
	hs, _ := connect(t, 1)
	deliver(t, l, hs)
	w.sayf(`{"cmd":"disconnect"}`)
	fdtest.Closed(t, "leaving", l.Left()) // so all was heard
	if n, _, err := unix.Recvfrom(w.fd, make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK); err == nil && n > 0 || fdtest.IsClosed(l.Ready()) {
		t.Error("something follows, or it is ready")
	}
	w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`)
	fdtest.Closed(t, "ready", l.Ready())
	m := w.hear()
	if m.inner().Ack == nil {
		t.Errorf("heard %+v", m)
	}
	unix.Close(m.fd)
	r.want(t, hs)
}

// TestRefusedForGood: what a server goes on refusing is given up after the balancer's patience,
// and only that.
func TestRefusedForGood(t *testing.T) {
	r := new(returned)
	p := newPrimary(t, ReadyAuto, r, hclog.NewNullLogger())
	p.cfg.Patience = 3 * pause
	l, w := p.openLink(t)
	w.listens()
	hs, clients := connect(t, 3)
	begin := time.Now()
	deliver(t, l, hs)
	refused := 0
	for seen := 0; seen < 2; {
		m := w.hear()
		inode := fdtest.Inode(t, m.fd)
		unix.Close(m.fd)
		if inode == clients[1].inode {
			w.accepts(m.inner().Seq)
			seen++
			continue
		}
		refused++
		w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
		w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, m.inner().Seq)
		if refused == 2 && seen == 1 { // all know their fate; go on until they are given up
			seen++
		}
	}
	for {
		r.mu.Lock()
		given := len(r.givenUp)
		r.mu.Unlock()
		if given == 2 {
			break
		}
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 10); n == 0 {
			if time.Since(begin) > timeout {
				t.Fatalf("%d connections were given up", given)
			}
			continue
		}
		seq := w.takes()
		refused++
		w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
		w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, seq)
	}
	if took := time.Since(begin); took < p.cfg.Patience || refused > 2*5 {
		t.Errorf("given up after %v and %d refusals", took, refused)
	}
	gone(t, clients[1])
	if got := clientsOf(r.givenUp); !slices.Equal(got, clientsOf([]fdpass.Handoff{hs[0], hs[2]})) {
		t.Errorf("given up: %v", got)
	}
	r.want(t, nil)
}

const closeServer = `{"cmd":"NODE_CLUSTER","act":"close","key":"null:8080:4:undefined:0","seq":3}`

// TestListensAgain: a program that closes its server and listens again keeps its connections.
func TestListensAgain(t *testing.T) {
	l, w, r := openLink(t, ReadyAuto)
	w.listens()
	hs, clients := connect(t, 2)
	deliver(t, l, hs[:1])
	seq := w.takes()
	w.say(closeServer + "\n") // the server is closed when the connection arrives
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":false}`, seq)
	w.understood(l)
	deliver(t, l, hs[1:])
	key := w.listens()
	for range hs {
		m := w.hear()
		if m.inner().Key != key {
			t.Fatalf("heard %+v", m)
		}
		unix.Close(m.fd)
		w.accepts(m.inner().Seq)
	}
	gone(t, clients...)
	time.Sleep(reopen + pause) // nothing is to happen when this is over
	if fdtest.IsClosed(l.Left()) {
		t.Errorf("it has left: %v", l.Err())
	}
	r.want(t, nil)
}

// TestDescriptorsFromWorker: what a worker sends is acknowledged, so that it goes on, and
// closed.
func TestDescriptorsFromWorker(t *testing.T) {
	_, w, _ := openLink(t, ReadyAuto)
	hs, clients := connect(t, 10)
	for _, h := range hs {
		if err := unix.Sendmsg(w.fd, []byte(`{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{}}`+"\n"), unix.UnixRights(h.FD), nil, 0); err != nil {
			t.Fatal(err)
		}
		unix.Close(h.FD)
		if m := w.hear(); m.Cmd != cmdAck {
			t.Errorf("heard %+v", m)
		}
	}
	gone(t, clients...)
}

// TestNeverStarted: a link without a worker can be closed.
func TestNeverStarted(t *testing.T) {
	l, _, r := openLink(t, ReadyAuto)
	hs, _ := connect(t, 2)
	deliver(t, l, hs)
	l.Drain()
	l.Close()
	r.want(t, hs)
}
