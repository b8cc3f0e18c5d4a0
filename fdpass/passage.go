package fdpass

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// MaxPassages is how many slots may have passages: a worker is told of all in one message.
const MaxPassages = MaxBatch

// NewPassage makes what other workers pass connections through to a worker. What is sent into the entrance, by whichever process, is received
// from the exit. The caller owns both. They are blocking, so that they are not in Go's poller by themselves.
func NewPassage() (entrance, exit int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("fdpass: %w", os.NewSyscallError("socketpair", err))
	}
	return fds[0], fds[1], nil
}

// NewEntrance takes ownership of an entrance. It sends, with details, and nothing is to be received from it.
func NewEntrance(fd int) (*Conn, error) {
	c, err := newSender(os.NewFile(uintptr(fd), "entrance of a passage"))
	if err != nil {
		return nil, err
	}
	c.SendDetails()
	return c, nil
}

// NewExit takes ownership of an exit, for the worker, as NewWorkerConn does; who sends is not trusted.
func NewExit(fd int) (*Conn, error) {
	c, err := NewWorkerConn(os.NewFile(uintptr(fd), "exit of a passage"))
	if err != nil {
		return nil, err
	}
	c.Distrust()
	return c, nil
}

// PassageEnd is an end of the passage of a slot's worker as the record of a pass that the master sends.
func PassageEnd(slot, fd int) Handoff {
	return Handoff{FD: fd, Client: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(slot))}
}

// PassageSlot tells whose passage it is.
func (h *Handoff) PassageSlot() int { return int(h.Client.Port()) }
