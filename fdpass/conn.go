package fdpass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors of sending and receiving.
var (
	// ErrFull: the other side does not keep up. Nothing was sent; try later.
	ErrFull = errors.New("fdpass: mailbox full")
	// ErrLimit: the worker has as many connections open as it may. It is nobody's fault, and for a moment.
	ErrLimit = errors.New("the slot's worker has as many connections open as it may; the limit is --max-connections-per-slot")
	// ErrInFlight is an ErrFull that is not the other side's fault: descriptors that this user's processes
	// have sent, to whomever, and that have not been received are as many as one process may
	// have open (ETOOMANYREFS, man 7 unix).
	ErrInFlight error = errInFlight{}
	// ErrNoFiles: this process is at its limit of open files. The message is still
	// in the mailbox; receive again when descriptors have been closed.
	ErrNoFiles = errors.New("fdpass: no free file descriptors")
	// ErrClosed: nobody will receive this any more.
	ErrClosed = errors.New("fdpass: mailbox closed")
)

type errInFlight struct{}

func (errInFlight) Error() string {
	return "fdpass: too many descriptors of this user are in flight, since some worker does not take what it is sent; the limit is that of open files: raise it with ulimit -n or LimitNOFILE=, or give the master CAP_SYS_RESOURCE, or use --route kernel"
}

func (errInFlight) Is(target error) bool { return target == ErrFull }

// Conn is one end of a mailbox. Its methods may be called at the same time.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	sending sync.Mutex
	out     outgoing
	sent    atomic.Uint64 // bytes

	receiving sync.Mutex
	in        *incoming
	inbox     *os.File // what Receive waits on: file itself, or that of newInbox
	inboxRaw  syscall.RawConn
	read      func(uintptr) bool
	over      atomic.Bool // EndReceiving was called
	bin       *Bin        // for what the other side should not have sent; nil: it is trusted
}

// outgoing is the message being sent; its buffers are used again and again so
// that sending does not allocate.
type outgoing struct {
	body  []byte
	oob   []byte // a control message of MaxBatch descriptors, cut to size
	full  bool   // with details
	wait  bool   // whether to wait for room
	err   error
	write func(fd uintptr) bool
	msg   unix.Msghdr
	iov   unix.Iovec
}

// Pair makes a mailbox. It returns the master's end, where Send does not wait for room
// either, and the worker's end to be inherited by a process; the caller owns both.
func Pair() (ours *Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("fdpass: %w", os.NewSyscallError("socketpair", err))
	}
	theirs = os.NewFile(uintptr(fds[1]), "mailbox of the worker")
	ours, err = NewMasterConn(os.NewFile(uintptr(fds[0]), "mailbox"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// NewMasterConn takes ownership of the master's end of a mailbox. It is as NewWorkerConn's, and the worker is not
// trusted: no descriptor that it sends is closed while somebody waits, also not by the kernel.
func NewMasterConn(file *os.File) (*Conn, error) {
	c, err := NewWorkerConn(file)
	if err != nil {
		return nil, err
	}
	c.Distrust()
	c.in.takeWhole()
	return c, nil
}

// NewWorkerConn takes ownership of the worker's end of a mailbox, which is blocking so that it is not in Go's poller: nothing
// waits there but Receive, and that by other means (inbox.go). So Send does not wait for room.
func NewWorkerConn(file *os.File) (*Conn, error) {
	c, err := NewConn(file)
	if err != nil {
		return nil, err
	}
	inbox, err := newInbox(c.raw)
	if err != nil {
		file.Close()
		return nil, err
	}
	c.inbox = inbox
	if c.inboxRaw, err = c.inbox.SyscallConn(); err != nil {
		c.Close()
		return nil, fmt.Errorf("fdpass: %w", err)
	}
	c.in.flags = unix.MSG_DONTWAIT
	c.in.packet.raw, c.in.spare.raw = true, true
	var done bool // under c.receiving
	readSocket := func(socket uintptr) { done = c.in.read(socket) }
	c.read = func(uintptr) bool {
		done = false
		if !c.over.Load() {
			c.raw.Control(readSocket) // when the socket is closed, so is the inbox, where it then waits
		}
		return done
	}
	return c, nil
}

// NewConn takes ownership of one end of a mailbox. To wait in Go's poller, the
// descriptor must have been non-blocking when the file was made.
func NewConn(file *os.File) (*Conn, error) {
	c, err := newSender(file)
	if err != nil {
		return nil, err
	}
	c.in = newIncoming()
	c.read = func(fd uintptr) bool { return c.in.read(fd) }
	return c, nil
}

// newSender is NewConn without what Receive needs.
func newSender(file *os.File) (*Conn, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("fdpass: %w", err)
	}
	c := &Conn{file: file, raw: raw, inbox: file, inboxRaw: raw}
	c.out.body = make([]byte, 0, headerSize+MaxBatch*longRecordSize)
	c.out.oob = make([]byte, unix.CmsgSpace(4*MaxBatch))
	c.out.write = c.out.sendmsg
	return c, nil
}

// Distrust has nobody wait for descriptors that arrive and are not wanted, whatever they are: those of what is malformed, and those that
// are discarded. Call it before the first Receive.
func (c *Conn) Distrust() {
	c.bin = new(Bin)
	c.in.discard = func(fds []int) { c.bin.Discard(fds...) }
}

// KeepWhole has Receive report ErrNoFiles for whatever has not all its descriptors yet, so that the kernel closes none of them. Call it before
// the first Receive. Others may receive as well.
func (c *Conn) KeepWhole() { c.in.near, c.in.whole = true, true }

// TrySend queues one message without waiting. It borrows the descriptors of hs,
// at most as many as Fit says, for the duration of the call. A nil error means
// "queued by the kernel", not "received by the other side".
func (c *Conn) TrySend(t Type, hs []Handoff) error { return c.send(t, hs, false) }

// SendDetails has the messages that are sent from now on carry the details of connections: the other side has said that
// it can read them.
func (c *Conn) SendDetails() {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.out.full = true
}

// Send is TrySend but waits for room, and so does every Send and TrySend meanwhile.
func (c *Conn) Send(t Type, hs []Handoff) error { return c.send(t, hs, true) }

func (c *Conn) send(t Type, hs []Handoff, wait bool) error {
	if Fit(hs) < len(hs) {
		return fmt.Errorf("fdpass: %d connections in one message, at most %d and %d bytes of their details", len(hs), MaxBatch, MaxDetails)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	c.out.body = appendMessage(c.out.body[:0], t, hs, c.out.full)
	return c.transmit(hs, wait)
}

// transmit sends the message in c.out.body with the descriptors of hs.
func (c *Conn) transmit(hs []Handoff, wait bool) error {
	o := &c.out
	o.attach(hs)
	o.wait, o.err = wait && c.inbox == c.file, nil
	if err := c.raw.Write(o.write); err != nil {
		return ErrClosed
	}
	if o.err == nil {
		c.sent.Add(uint64(len(o.body)))
	}
	return o.err
}

// Sent returns how many bytes of messages were sent.
func (c *Conn) Sent() uint64 { return c.sent.Load() }

// Unread returns how many bytes of messages from the other side wait to be received. It does not wait itself.
func (c *Conn) Unread() (n int, err error) {
	controlErr := c.raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n, errors.Join(controlErr, os.NewSyscallError("ioctl", err))
}

// attach writes the control message with the descriptors of hs.
func (o *outgoing) attach(hs []Handoff) {
	o.oob = o.oob[:0]
	if len(hs) == 0 {
		return
	}
	o.oob = o.oob[:unix.CmsgSpace(4*len(hs))]
	header := (*unix.Cmsghdr)(unsafe.Pointer(&o.oob[0]))
	header.Level, header.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	header.SetLen(unix.CmsgLen(4 * len(hs)))
	for i := range hs {
		binary.NativeEndian.PutUint32(o.oob[unix.CmsgLen(4*i):], uint32(hs[i].FD))
	}
}

// sendmsg makes one attempt; false asks the poller to wait.
func (o *outgoing) sendmsg(fd uintptr) bool {
	for {
		err := o.sendmsgRaw(fd)
		switch err {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if o.wait {
				return false
			}
			o.err = ErrFull
		case unix.ENOBUFS, unix.ENOMEM:
			o.err = ErrFull
		case unix.ETOOMANYREFS:
			o.err = ErrInFlight
		case unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN:
			o.err = ErrClosed
		default:
			o.err = fmt.Errorf("fdpass: %w", os.NewSyscallError("sendmsg", err))
		}
		return true
	}
}

// sendmsgRaw is sendmsg(2) without telling Go's scheduler, as it never waits.
func (o *outgoing) sendmsgRaw(fd uintptr) syscall.Errno {
	o.iov.Base = &o.body[0]
	o.iov.SetLen(len(o.body))
	o.msg.Iov, o.msg.Iovlen = &o.iov, 1
	o.msg.Control = unsafe.SliceData(o.oob)
	o.msg.SetControllen(len(o.oob))
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&o.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// Message is what Receive fills; it may be used again.
type Message struct {
	Type     Type
	Handoffs []Handoff
	Report   Report // of TypeReport
	Slots    int    // of TypeSlots
	Replaced bool   // likewise
	// Lost counts descriptors that did not arrive because this process came to its
	// limit of open files since the last message, from afar (MSG_CTRUNC). Their
	// connections are closed; Handoffs holds those that arrived. Near the limit
	// Receive is careful and reports ErrNoFiles instead.
	Lost int
}

// Receive waits for a message. The caller owns the descriptors in m.Handoffs. The
// error is io.EOF when the other side has closed and all that it sent has been
// received, and matches ErrMalformed when the message is not one: then all
// descriptors that it carried are closed.
func (c *Conn) Receive(m *Message) error { return c.receive(m, c.read) }

// ReceiveLocked is Receive, except that it locks l before a message leaves the socket, and the
// caller unlocks it when it has seen to that. It is locked in any case.
func (c *Conn) ReceiveLocked(m *Message, l sync.Locker) error {
	locked := false
	err := c.receive(m, func(fd uintptr) bool {
		l.Lock()
		if locked = c.read(fd); !locked {
			l.Unlock()
		}
		return locked
	})
	if !locked {
		l.Lock()
	}
	return err
}

func (c *Conn) receive(m *Message, read func(fd uintptr) bool) error {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	*m = Message{Handoffs: m.Handoffs[:0]}
	in := c.in
	if err := c.inboxRaw.Read(read); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("fdpass: %w", err)
		}
		return ErrClosed // the poller's only other error, and not an exported one
	}
	switch {
	case in.err != nil:
		return fmt.Errorf("fdpass: %w", os.NewSyscallError("recvmsg", in.err))
	case in.end():
		return io.EOF
	}
	in.learn()
	err := in.parse(m)
	if err != nil {
		in.discard(in.fds)
		*m = Message{Handoffs: m.Handoffs[:0]}
	}
	return err
}

// Discard takes ownership of what was received and is not wanted, and closes it. It does not wait.
func (c *Conn) Discard(hs []Handoff) {
	if c.bin == nil {
		CloseHandoffs(hs)
		return
	}
	for _, h := range hs {
		c.bin.Discard(h.FD)
	}
}

// Full tells whether so much of what the other side has sent waits to be closed that it should not be
// heard any more until that is done.
func (c *Conn) Full() bool { return c.bin != nil && c.bin.Full() }

// Next returns the type of the message that Receive would return, without waiting. It is
// zero when there is none, or none of this protocol.
func (c *Conn) Next() (t Type) {
	c.raw.Control(func(fd uintptr) {
		var start [2]byte // without room for descriptors, which stay where they are
		n, _, _, _, err := unix.Recvmsg(int(fd), start[:], nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == nil && n == len(start) && start[0] == version {
			t = Type(start[1])
		}
	})
	return t
}

// parse fills m with the message.
func (in *incoming) parse(m *Message) error {
	if in.kept {
		return ErrNoFiles
	}
	p, err := parse(in.body[:in.n])
	if err != nil {
		return err
	}
	number := p.t == TypeReport || p.t == TypeSlots // or two
	switch {
	case number && p.count == 1 && len(in.fds) == 0 && !in.truncated():
		m.Type = p.t
		if p.t == TypeReport {
			m.Report = parseReport(p.record(0))
		} else {
			m.Slots, m.Replaced = parseSlots(p.record(0))
		}
		return nil
	case number, len(in.fds) > p.count, len(in.fds) < p.count && !in.truncated():
		return fmt.Errorf("%w: %s with %d records and %d descriptors", ErrMalformed, p.t, p.count, len(in.fds))
	case p.count > 0 && (p.t == TypeReady || p.t == TypeLeave || p.t == TypePing || p.t == TypePong):
		return fmt.Errorf("%w: %s with %d records", ErrMalformed, p.t, p.count)
	}
	m.Type, m.Lost = p.t, p.count-len(in.fds)
	m.Handoffs, err = p.handoffs(m.Handoffs, in.fds)
	return err
}

// SyscallConn gives access to the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.file.SyscallConn() }

// SetReceiveDeadline bounds Receive, as net.Conn's SetReadDeadline does.
func (c *Conn) SetReceiveDeadline(t time.Time) error { return c.inbox.SetReadDeadline(t) }

// EndReceiving has Receive on a worker's end return, now and from now on, without taking another message. It does not wait. For a
// ReceiveLocked no message leaves the socket either that was not locked before.
func (c *Conn) EndReceiving() {
	c.over.Store(true)
	c.SetReceiveDeadline(time.Unix(1, 0))
}

// CloseWrite says that no more messages follow. The other side receives all that
// was sent before, then end of file.
//
// The shutdown acts on the socket, not on this descriptor: on all duplicates.
func (c *Conn) CloseWrite() error {
	err := c.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
	if err != nil {
		return ErrClosed
	}
	return nil
}

// Close closes this end and wakes the goroutines that wait on it.
func (c *Conn) Close() error {
	err := c.file.Close()
	if c.inbox != c.file {
		err = errors.Join(err, c.inbox.Close())
	}
	return err
}

// CloseHandoffs is CloseConnections for those of hs.
func CloseHandoffs(hs []Handoff) {
	for i := range hs {
		closeConnection(hs[i].FD)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
