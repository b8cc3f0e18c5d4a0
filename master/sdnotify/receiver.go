package sdnotify

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// maxRate is how many messages of a worker are read in a second; then it waits.
	maxRate = 100
	// maxRights is the most descriptors that a message can carry (SCM_MAX_FD).
	maxRights = 253
)

// Receiver is the socket of one worker. It implements supervisor.Notices. One goroutine reads, from Started or Resume on until Close.
type Receiver struct {
	conn     *net.UnixConn
	name     string        // of the socket, behind its @
	watchdog time.Duration // within which the worker is to send WATCHDOG=1; 0: it is not told of that
	bin      fdpass.Bin
	pid      int // of the worker's first process, which leads its group
	ready    chan struct{}
	stopping chan struct{}

	mu   sync.Mutex
	said supervisor.Said
}

// Open makes a socket for a worker that is not yet started.
func Open(watchdog time.Duration) (*Receiver, error) {
	name := "handfast/" + rand.Text()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@" + name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("sdnotify: %w", err)
	}
	if err := sock.Control(conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		conn.Close()
		return nil, fmt.Errorf("sdnotify: %w", err)
	}
	return newReceiver(conn, name, watchdog), nil
}

func newReceiver(conn *net.UnixConn, name string, watchdog time.Duration) *Receiver {
	return &Receiver{conn: conn, name: name, watchdog: watchdog, ready: make(chan struct{}), stopping: make(chan struct{})}
}

// Env returns where the worker may send, and how often it should. WATCHDOG_PID is not set: any process of the worker may.
func (r *Receiver) Env() []string {
	env := []string{"NOTIFY_SOCKET=@" + r.name}
	if r.watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(r.watchdog.Microseconds(), 10))
	}
	return env
}

// Started begins to read.
func (r *Receiver) Started(pid int) {
	r.pid = pid
	r.Resume()
}

// Resume begins to read.
func (r *Receiver) Resume() { go r.run() }

// Ready is closed when the worker has said READY=1.
func (r *Receiver) Ready() <-chan struct{} { return r.ready }

// Stopping is closed when the worker has said STOPPING=1.
func (r *Receiver) Stopping() <-chan struct{} { return r.stopping }

// Said returns what the worker has said last.
func (r *Receiver) Said() supervisor.Said {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said
}

// Close ends the goroutine. It does not wait.
func (r *Receiver) Close() { r.conn.Close() }

func (r *Receiver) run() {
	text, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxRights))
	begun, count := time.Now(), 0
	for {
		n, oobn, _, _, err := r.conn.ReadMsgUnix(text, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		sender := r.open(oob[:oobn])
		if err == nil && r.isOurs(sender) {
			r.handle(parse(text[:n]))
			count++
		}
		if now := time.Now(); now.Sub(begun) >= time.Second {
			begun, count = now, 0
		}
		if err != nil || count >= maxRate || r.bin.Full() {
			time.Sleep(time.Second / 10)
		}
	}
}

// open returns the process that has sent a message, 0 if that is not known, and discards the descriptors that came with it: the sender may wait
// for that.
func (r *Receiver) open(oob []byte) (sender int) {
	all, _ := unix.ParseSocketControlMessage(oob)
	for i := range all {
		if fds, err := unix.ParseUnixRights(&all[i]); err == nil {
			r.bin.Discard(fds...)
		}
		if cred, err := unix.ParseUnixCredentials(&all[i]); err == nil {
			sender = int(cred.Pid)
		}
	}
	return sender
}

func (r *Receiver) isOurs(pid int) bool {
	group, err := unix.Getpgid(pid)
	return pid > 0 && err == nil && group == r.pid
}

func (r *Receiver) handle(m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.status != nil {
		r.said.Status = *m.status
	}
	if m.ping {
		r.said.Pings++
	}
	r.said.Trigger = r.said.Trigger || m.trigger
	if m.ready {
		closeOnce(r.ready)
	}
	if m.stopping {
		closeOnce(r.stopping)
	}
}

// closeOnce is called under the lock.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
