package listening

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// watches tells whether an epoll instance, as its fdinfo shows it, waits for a socket to be
// readable:
//
//	tfd:        5 events:       19 data:                5  pos:0 ino:1ce13 sdev:9
func watches(fdinfo string, inode uint64) bool {
	const epollIn = 0x1
	for line := range strings.Lines(fdinfo) {
		if !strings.HasPrefix(line, "tfd:") {
			continue
		}
		fields := strings.Fields(strings.ReplaceAll(line, ":", ": "))
		events, err1 := strconv.ParseUint(after(fields, "events:"), 16, 32)
		ino, err2 := strconv.ParseUint(after(fields, "ino:"), 16, 64)
		if err1 == nil && err2 == nil && ino == inode && events&epollIn != 0 {
			return true
		}
	}
	return false
}

// after returns the field after one.
func after(fields []string, name string) string {
	for i := range len(fields) - 1 {
		if fields[i] == name {
			return fields[i+1]
		}
	}
	return ""
}

// call is a system call in which a thread waits.
type call struct {
	number int
	args   [6]uint64
}

// parseCall reads a thread's syscall file: the number, six arguments, stack pointer and program
// counter; or "running", or "-1 …" outside of a system call.
func parseCall(text string) (c call, ok bool) {
	fields := strings.Fields(text)
	if len(fields) != 9 {
		return call{}, false
	}
	number, err := strconv.ParseUint(fields[0], 10, 31)
	if err != nil {
		return call{}, false
	}
	c.number = int(number)
	for i := range c.args {
		if c.args[i], err = strconv.ParseUint(fields[1+i], 0, 64); err != nil {
			return call{}, false
		}
	}
	return c, true
}

// waits tells whether the call waits for a descriptor to be readable, which for a listener
// means: for connections. Read reads the caller's memory and returns how much it could.
func (c *call) waits(fd int, read func(at uint64, buf []byte) int) bool {
	switch c.number {
	case sock.CallAccept, unix.SYS_ACCEPT4:
		return c.args[0] == uint64(fd)
	case sysPoll, unix.SYS_PPOLL:
		return c.polls(fd, read)
	case sysSelect, unix.SYS_PSELECT6:
		return c.selects(fd, read)
	}
	return false
}

// polls looks for the descriptor in an array of struct pollfd.
func (c *call) polls(fd int, read func(uint64, []byte) int) bool {
	const size = 8
	n := min(c.args[1], maxWatched)
	if n == 0 {
		return false
	}
	buf := make([]byte, n*size)
	for buf = buf[:read(c.args[0], buf)]; len(buf) >= size; buf = buf[size:] {
		events := binary.NativeEndian.Uint16(buf[4:])
		if binary.NativeEndian.Uint32(buf) == uint32(fd) && events&unix.POLLIN != 0 {
			return true
		}
	}
	return false
}

// selects looks for the descriptor in an fd_set, whose bits are the kernel's longs'.
func (c *call) selects(fd int, read func(uint64, []byte) int) bool {
	const bits = 64
	if uint64(fd) >= c.args[0] || c.args[1] == 0 {
		return false
	}
	var word [bits / 8]byte
	if read(c.args[1]+uint64(fd/bits)*uint64(len(word)), word[:]) < len(word) {
		return false
	}
	return binary.NativeEndian.Uint64(word[:])&(1<<(fd%bits)) != 0
}
