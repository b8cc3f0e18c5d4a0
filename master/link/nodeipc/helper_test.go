package nodeipc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// timeout bounds what should be immediate.
const timeout = fdtest.Patience

// client is the other end of a connection.
type client struct {
	fd    int    // of the end that the test keeps
	inode uint64 // of the end that is handed over
}

// connect makes n connections; a link does not mind that they are no TCP. The caller owns
// the handoffs, the test the clients.
func connect(t testing.TB, n int) (hs []fdpass.Handoff, clients []client) {
	t.Helper()
	for i := range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[0]) })
		inode := fdtest.Inode(t, fds[1])
		clients = append(clients, client{fd: fds[0], inode: inode})
		hs = append(hs, fdpass.Handoff{FD: fds[1], Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(1+i))})
	}
	return hs, clients
}

// ended tells whether nobody holds the other end any more.
func (c client) ended() bool {
	n, err := unix.Read(c.fd, make([]byte, 1))
	return n == 0 && err == nil
}

// returned collects what is readmitted, and what is given up.
type returned struct {
	mu       sync.Mutex
	all      []fdpass.Handoff
	givenUp  []fdpass.Handoff
	sessions map[clientip.Session]*Link
}

// Claim implements Sessions.
func (r *returned) Claim(id clientip.Session, l *Link) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = map[clientip.Session]*Link{}
	}
	if owner := r.sessions[id]; owner != nil {
		return owner == l
	}
	r.sessions[id] = l
	return true
}

// Release implements Sessions.
func (r *returned) Release(id clientip.Session, l *Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[id] == l {
		delete(r.sessions, id)
	}
}

// keeps waits until there are so many sessions.
func (r *returned) keeps(t testing.TB, n int) {
	t.Helper()
	fdtest.Eventually(t, "sessions", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.sessions) == n
	})
}

func (r *returned) giveUp(hs []fdpass.Handoff) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.givenUp = append(r.givenUp, hs...)
}

func (r *returned) readmit(hs []fdpass.Handoff) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, hs...)
}

func (r *returned) clients() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return clientsOf(r.all)
}

func clientsOf(hs []fdpass.Handoff) []netip.AddrPort {
	clients := []netip.AddrPort{}
	for _, h := range hs {
		clients = append(clients, h.Client)
	}
	slices.SortFunc(clients, netip.AddrPort.Compare)
	return clients
}

// want waits until exactly these connections were readmitted, in any order.
func (r *returned) want(t testing.TB, hs []fdpass.Handoff) {
	t.Helper()
	fdtest.Eventually(t, "readmission", func() bool { return len(r.clients()) >= len(hs) })
	if got, want := r.clients(), clientsOf(hs); !slices.Equal(got, want) {
		t.Fatalf("readmitted: %v\nwant: %v", got, want)
	}
}

// fakeWorker is Node's end of a channel.
type fakeWorker struct {
	t    testing.TB
	fd   int
	text []byte
	fds  []int // received and not taken yet
	once sync.Once
}

const port = 8080

// openLink makes a link whose balancer listens on port, and the worker that has inherited its
// end. Both are closed when the test ends, and nothing may be left.
func openLink(t testing.TB, when ReadyWhen) (*Link, *fakeWorker, *returned) {
	t.Helper()
	r := new(returned)
	l, w := newPrimary(t, when, r, hclog.NewNullLogger()).openLink(t)
	return l, w, r
}

// testPrimary is the primary of a balancer that listens on port.
type testPrimary struct{ *Primary }

func newPrimary(t testing.TB, when ReadyWhen, r *returned, log hclog.Logger) testPrimary {
	t.Helper()
	fdtest.NoLeaks(t)
	p := NewPrimary(Config{ReadyWhen: when, Readmit: r.readmit, GiveUp: r.giveUp, Patience: timeout, Sessions: r, Logger: log})
	p.ports[port] = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}
	t.Cleanup(func() {
		p.Close()
		fdpass.CloseHandoffs(r.all)
		fdpass.CloseHandoffs(r.givenUp)
	})
	return testPrimary{p}
}

// openLink adds a worker.
func (p testPrimary) openLink(t testing.TB) (*Link, *fakeWorker) {
	t.Helper()
	l, err := p.Open(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(l.Files()[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.Ready() // as the supervisor does when the process has started
	w := &fakeWorker{t: t, fd: fd}
	t.Cleanup(func() {
		w.Close()
		if !fdtest.IsClosed(l.ended) {
			l.Close()
		}
	})
	return l, w
}

// Close is the end of the process.
func (w *fakeWorker) Close() {
	w.once.Do(func() {
		unix.Close(w.fd)
		for _, fd := range w.fds {
			unix.Close(fd)
		}
	})
}

// say sends text as it is, in pieces if there is no room.
func (w *fakeWorker) say(text string) {
	w.t.Helper()
	for len(text) > 0 {
		n, err := unix.SendmsgN(w.fd, []byte(text), nil, nil, unix.MSG_NOSIGNAL)
		if err != nil {
			w.t.Fatalf("worker says %.100q: %v", text, err)
		}
		text = text[n:]
	}
}

func (w *fakeWorker) sayf(format string, args ...any) {
	w.t.Helper()
	w.say(fmt.Sprintf(format, args...) + "\n")
}

// heard is a message of the master, and the descriptor that came with it, or -1. The worker
// owns it.
type heard struct {
	Cmd, Act, Type, Key string
	Seq                 int64
	Ack                 *int64
	Errno               int
	Sockname            *sockname
	Data                json.RawMessage
	Msg                 json.RawMessage
	fd                  int
}

// inner is the message within a NODE_HANDLE.
func (h heard) inner() (in heard) {
	json.Unmarshal(h.Msg, &in)
	return in
}

// hear returns the next message, as Node reads it: a read ends behind a descriptor.
func (w *fakeWorker) hear() heard {
	w.t.Helper()
	line := w.hearLine()
	m := heard{fd: -1}
	var other *json.UnmarshalTypeError // another worker's message, passed on
	if err := json.Unmarshal(line, &m); err != nil && !errors.As(err, &other) {
		w.t.Fatalf("the master says %q: %v", line, err)
	}
	if m.Cmd == cmdHandle {
		if len(w.fds) == 0 {
			w.t.Fatalf("%s without a descriptor", line)
		}
		m.fd = w.fds[0]
		w.fds = w.fds[1:]
	}
	return m
}

// hearLine returns the next message as it came, without its end; nil at the end of file.
func (w *fakeWorker) hearLine() []byte {
	w.t.Helper()
	for searched := 0; ; {
		if at := bytes.IndexByte(w.text[searched:], '\n'); at >= 0 {
			line := w.text[:searched+at]
			w.text = w.text[searched+at+1:]
			return line
		}
		searched = len(w.text)
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(timeout.Milliseconds())); n == 0 && err == nil {
			w.t.Fatalf("the master says nothing more than %q", w.text)
		}
		text, oob := make([]byte, 65536), make([]byte, 256)
		n, oobn, _, _, err := unix.Recvmsg(w.fd, text, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			w.t.Fatalf("the master has gone: %v", err)
		}
		if n == 0 {
			return nil
		}
		w.text = append(w.text, text[:n]...)
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			w.fds = append(w.fds, fds...)
		}
	}
}

// takes hears a connection and returns its number; the worker closes its copy.
func (w *fakeWorker) takes() int64 {
	w.t.Helper()
	m := w.hear()
	if m.Cmd != cmdHandle {
		w.t.Fatalf("heard %+v, want a connection", m)
	}
	unix.Close(m.fd)
	return m.inner().Seq
}

// pings hears the question whether the program has run.
func (w *fakeWorker) pings() {
	w.t.Helper()
	if line := string(w.hearLine()); line != `{"cmd":"NODE_HANDLE","type":"net.Native","msg":null}` {
		w.t.Fatalf("heard %s", line)
	}
}

// starts says that Node runs, and answers for it that the program has run.
func (w *fakeWorker) starts() {
	w.t.Helper()
	w.sayf(`{"cmd":"NODE_CLUSTER","act":"online","seq":0}`)
	w.pings()
	w.sayf(`{"cmd":"NODE_HANDLE_NACK"}`)
}

// accepts says that the server has taken a connection, as Node does.
func (w *fakeWorker) accepts(seq int64) {
	w.t.Helper()
	w.sayf(`{"cmd":"NODE_HANDLE_ACK"}`)
	w.sayf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true}`, seq)
}

// listens asks for the balancer's port, and is a server from now on.
func (w *fakeWorker) listens() (key string) {
	w.t.Helper()
	w.sayf(queryFor, 7, port)
	m := w.hear()
	if m.Errno != 0 || m.Ack == nil || *m.Ack != 7 || m.Sockname == nil || m.Sockname.Port != port {
		w.t.Fatalf("listening is answered by %+v", m)
	}
	return m.Key
}

// Questions of a worker that wants to listen: on the port of the second argument, and on one
// that is not the balancer's.
const (
	queryFor       = `{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":%[2]d,"addressType":4,"seq":%[1]d}`
	queryElsewhere = `{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"127.0.0.1","port":0,"addressType":4,"seq":8}`
)

// deliver fails the test unless the link takes all.
func deliver(t testing.TB, l *Link, hs []fdpass.Handoff) {
	t.Helper()
	if n, err := reexectest.Passing(l.Deliver)(hs); n != len(hs) || err != nil {
		t.Fatalf("delivered %d of %d, error %v", n, len(hs), err)
	}
}

// gone waits until nobody holds these connections.
func gone(t testing.TB, clients ...client) {
	t.Helper()
	for i, c := range clients {
		fdtest.Eventually(t, fmt.Sprintf("end of connection %d", i), c.ended)
	}
}

func lines(texts ...string) string { return strings.Join(texts, "\n") + "\n" }
