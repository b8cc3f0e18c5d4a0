package listening

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/pgroup"
	"github.com/handfast/handfast/master/sockdiag"
)

const (
	// soon and late are how long Wait sleeps between two looks, at first and in the end.
	soon = 10 * time.Millisecond
	late = 100 * time.Millisecond
	// maxProcesses bounds how many processes are looked at, a worker's and its descendants.
	maxProcesses = 1024
	// maxWatched bounds how many descriptors of one poll or select are looked at.
	maxWatched = 4096
)

// Listener is a listening socket.
type Listener struct {
	Inode uint64         // see Inode
	Addr  netip.AddrPort // where it listens; the zero value: connections of it are not looked for
}

// Wait looks again and again until processes below roots wait on all the sockets, or have accepted
// from them, and returns true then; or until stop is closed. Roots and sockets
// are asked for anew each time; nothing can be ready while there are no sockets. OnHidden, if
// not nil, is called once when processes must not be looked into and nothing was seen.
func Wait(stop <-chan struct{}, roots func() []int, sockets func() []Listener, onHidden func(error)) bool {
	delay := soon
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		seen, err := Listening(roots(), sockets())
		if seen {
			return true
		}
		if err != nil && onHidden != nil {
			onHidden(err)
			onHidden = nil
		}
		timer.Reset(delay)
		delay = min(delay+delay/8, late)
		select {
		case <-stop:
			return false
		case <-timer.C:
		}
	}
}

// Listening tells whether processes below roots wait on all the sockets now, or have connections
// that they have accepted from them. An error says that there are processes that must not be looked
// into; the answer is about the others.
func Listening(roots []int, sockets []Listener) (bool, error) {
	if len(sockets) == 0 {
		return false, nil
	}
	var hidden error
	missing := slices.Clone(sockets)
	var held []uint64 // other sockets, of all processes
	pids, _ := descendants(roots)
	for _, pid := range pids {
		waits, others, err := look(pid, missing)
		if errors.Is(err, fs.ErrPermission) && hidden == nil {
			hidden = fmt.Errorf("process %d: %w", pid, err)
		}
		missing = slices.DeleteFunc(missing, func(s Listener) bool { return slices.Contains(waits, s.Inode) })
		if len(missing) == 0 {
			return true, nil
		}
		held = append(held, others...)
	}
	if len(held) == 0 {
		return false, hidden
	}
	missing = slices.DeleteFunc(missing, func(s Listener) bool { return s.hasAccepted(held) })
	return len(missing) == 0, hidden
}

// hasAccepted tells whether one of these sockets was accepted from a listener: it is a connection
// to its address.
func (s Listener) hasAccepted(held []uint64) bool {
	if !s.Addr.IsValid() {
		return false
	}
	connections, err := sockdiag.List(s.Addr.Port(), sockdiag.Established, sockdiag.CloseWait)
	return err == nil && slices.ContainsFunc(connections, func(c sockdiag.Socket) bool {
		return c.ComesTo(s.Addr.Addr()) && slices.Contains(held, c.Inode)
	})
}

// Holding returns those of the sockets that processes below roots have open. An error says that there may be more: there are
// processes that could not be looked into, or not be found.
func Holding(roots []int, sockets []uint64) (held []uint64, err error) {
	pids, err := descendants(roots)
	for _, pid := range pids {
		entries, readErr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err == nil {
			err = unlessEnded(pid, readErr)
		}
		for _, entry := range entries {
			fd, _ := strconv.Atoi(entry.Name())
			if inode := Socket(pid, fd); slices.Contains(sockets, inode) && !slices.Contains(held, inode) {
				held = append(held, inode)
			}
		}
	}
	return held, err
}

// Socket returns the inode of a descriptor of a process or thread, 0 if it is none of a
// socket or cannot be seen.
//
// It allocates nothing, and the call is raw: where accept is answered it is asked for each connection. No file system is
// asked (man 5 proc).
func Socket(pid, fd int) uint64 {
	var path, name [64]byte
	at := append(strconv.AppendInt(append(path[:0], "/proc/"...), int64(pid), 10), "/fd/"...)
	at = append(strconv.AppendInt(at, int64(fd), 10), 0)
	here := unix.AT_FDCWD
	n, _, errno := unix.RawSyscall6(unix.SYS_READLINKAT, uintptr(here), uintptr(unsafe.Pointer(&at[0])),
		uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)), 0, 0)
	if errno != 0 {
		return 0
	}
	return parseSocket(name[:n])
}

// parseSocket finds the inode in what /proc/PID/fd shows of a socket, socket:[4711].
func parseSocket(name []byte) (inode uint64) {
	number, ok := bytes.CutPrefix(name, []byte("socket:["))
	if !ok || len(number) < 2 || number[len(number)-1] != ']' {
		return 0
	}
	for _, digit := range number[:len(number)-1] {
		if digit < '0' || digit > '9' {
			return 0
		}
		inode = 10*inode + uint64(digit-'0')
	}
	return inode
}

// Process returns the process of a thread, or 0 if that has ended.
func Process(tid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "\nTgid:")
	number, _, _ := strings.Cut(after, "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(number))
	return pid
}

// unlessEnded returns why a process could not be looked into; nil if it has ended. For want of descriptors or memory others that are there are
// not seen.
func unlessEnded(pid int, err error) error {
	if err == nil || pgroup.Ended(err) {
		return nil
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

// descendants returns the roots and all processes below them. An error says that there may be more.
func descendants(roots []int) (all []int, err error) {
	all = slices.Clone(roots)
	for i := 0; i < len(all) && len(all) < maxProcesses; i++ {
		tids, readErr := entries(fmt.Sprintf("/proc/%d/task", all[i]))
		if err == nil {
			err = unlessEnded(all[i], readErr)
		}
		for _, tid := range tids {
			text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", all[i], tid))
			if err == nil {
				err = unlessEnded(all[i], readErr)
			}
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(all, pid) {
					all = append(all, pid)
				}
			}
		}
	}
	return all, err
}

// numbers is entries of as many as can be seen.
func numbers(folder string) []int {
	all, _ := entries(folder)
	return all
}

// entries returns those of a folder whose names are numbers.
func entries(folder string) (all []int, err error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			all = append(all, n)
		}
	}
	return all, err
}

// look returns those of the sockets that a process waits on, and what other sockets it has.
func look(pid int, sockets []Listener) (waits, others []uint64, err error) {
	own, epolls, others, err := openSockets(pid, sockets)
	if err != nil || len(own) == 0 {
		return nil, others, err
	}
	return append(watched(pid, epolls, own), awaited(pid, own)...), others, nil
}

// openSockets returns which of the sockets a process has open, by its descriptors; its epoll instances; and the
// inodes of its other sockets. Only open sockets count: an epoll instance remembers those that the process has
// closed while others have them (man 7 epoll).
func openSockets(pid int, sockets []Listener) (own map[int]uint64, epolls []int, others []uint64, err error) {
	folder := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, nil, err
	}
	own = make(map[int]uint64)
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		name, err := os.Readlink(folder + entry.Name())
		if err == nil && name == "anon_inode:[eventpoll]" {
			epolls = append(epolls, fd)
			continue
		}
		switch inode := Socket(pid, fd); {
		case inode == 0:
		case slices.ContainsFunc(sockets, func(s Listener) bool { return s.Inode == inode }):
			own[fd] = inode
		default:
			others = append(others, inode)
		}
	}
	return own, epolls, others, nil
}

// watched returns the sockets that epoll instances of a process watch.
func watched(pid int, epolls []int, own map[int]uint64) (inodes []uint64) {
	for _, fd := range epolls {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			continue
		}
		for _, inode := range own {
			if watches(string(text), inode) {
				inodes = append(inodes, inode)
			}
		}
	}
	return inodes
}

// awaited returns the sockets that threads of a process wait on in a system call.
func awaited(pid int, own map[int]uint64) (inodes []uint64) {
	folder := fmt.Sprintf("/proc/%d/task", pid)
	for _, tid := range numbers(folder) {
		text, err := os.ReadFile(fmt.Sprintf("%s/%d/syscall", folder, tid))
		if err != nil {
			continue
		}
		call, ok := parseCall(string(text))
		if !ok {
			continue
		}
		for fd, inode := range own {
			if call.waits(fd, func(at uint64, buf []byte) int { return readMemory(tid, at, buf) }) {
				inodes = append(inodes, inode)
			}
		}
	}
	return inodes
}

// readMemory reads a process's memory and returns how much it could.
func readMemory(pid int, at uint64, buf []byte) int {
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(buf)}}, 0)
	if err != nil {
		return 0
	}
	return n
}
