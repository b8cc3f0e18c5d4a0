package seccomp

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/link/listening"
)

// interest is an entry of an epoll instance for a descriptor (man 7 epoll). The kernel finds it by
// the descriptor's number and the file that this leads to, so it is lost when another file takes
// that one's place. Some servers make it before they bind: Netty's epoll transport does, and fails
// when it wants to change it (ENOENT).
type interest struct {
	epoll  int // the instance's number in the process
	events uint32
	data   uint64
}

// interests returns the entries for the caller's descriptor.
func (c Caller) interests() (all []interest) {
	inode := listening.Socket(c.TID, c.FD)
	folder := fmt.Sprintf("/proc/%d/", c.TID)
	entries, err := os.ReadDir(folder + "fd")
	if err != nil || inode == 0 {
		return nil
	}
	for _, entry := range entries {
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if name, err := os.Readlink(folder + "fd/" + entry.Name()); err != nil || name != "anon_inode:[eventpoll]" {
			continue
		}
		text, err := os.ReadFile(folder + "fdinfo/" + entry.Name())
		if err != nil {
			continue
		}
		if i, ok := parseInterest(string(text), c.FD, inode); ok {
			i.epoll = number
			all = append(all, i)
		}
	}
	return all
}

// parseInterest finds a descriptor's entry in the fdinfo of an epoll instance:
//
//	tfd:        5 events:       19 data:                5  pos:0 ino:1ce13 sdev:9
func parseInterest(fdinfo string, fd int, inode uint64) (i interest, ok bool) {
	for lines := bufio.NewScanner(strings.NewReader(fdinfo)); lines.Scan(); {
		fields := make(map[string]string)
		words := strings.Fields(strings.ReplaceAll(lines.Text(), ":", ": "))
		for k := 0; k+1 < len(words); k += 2 {
			fields[words[k]] = words[k+1]
		}
		number, err := strconv.Atoi(fields["tfd:"])
		ino, inoErr := strconv.ParseUint(fields["ino:"], 16, 64)
		if err != nil || inoErr != nil || number != fd || ino != inode {
			continue
		}
		events, err := strconv.ParseUint(fields["events:"], 16, 32)
		data, dataErr := strconv.ParseUint(fields["data:"], 16, 64)
		if err == nil && dataErr == nil {
			return interest{events: uint32(events), data: data}, true
		}
	}
	return i, false
}

// register makes a Caller's interests anew, in the file that its descriptor leads to now, of which
// source is another descriptor.
func (c Caller) register(all []interest, source int) error {
	if len(all) == 0 {
		return nil
	}
	process, err := unix.PidfdOpen(listening.Process(c.TID), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	for _, i := range all {
		epoll, err := unix.PidfdGetfd(process, i.epoll, 0)
		if err != nil {
			return os.NewSyscallError("pidfd_getfd", err)
		}
		err = i.register(epoll, c.FD, source)
		new(fdpass.Bin).Discard(epoll) // it may be any file, whose close may wait
		if err != nil {
			return err
		}
	}
	return nil
}

// register adds the interest in number to an epoll instance, of which epoll is a descriptor of ours.
// source must have that number then. In this process the number is another file's, so a
// thread with a table of descriptors of its own does it (man 2 unshare), and ends.
func (i interest) register(epoll, number, source int) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- i.register(epoll, number, source) // on another one: the first thread does not end
			return
		}
		result <- i.registerHere(epoll, number, source)
	}()
	return <-result
}

// event is struct epoll_event, whose data package unix splits.
func (i interest) event() unix.EpollEvent {
	event := unix.EpollEvent{Events: i.events}
	*(*[8]byte)(unsafe.Pointer(&event.Fd)) = *(*[8]byte)(unsafe.Pointer(&i.data)) // Fd and Pad
	return event
}

// registerHere is register on a thread whose descriptors it may change.
func (i interest) registerHere(epoll, number, source int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if epoll == number {
		var err error
		if epoll, err = unix.FcntlInt(uintptr(epoll), unix.F_DUPFD_CLOEXEC, number+1); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	if source != number {
		if err := unix.Dup3(source, number, unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	event := i.event()
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, number, &event))
}

// ReplaceSocket puts a duplicate of source in the place of the caller's descriptor, and
// registers it with the epoll instances that knew the old one. The call goes on waiting. lost says why epoll
// instances do not know the new socket, which is in place all the same.
func (n *Notifications) ReplaceSocket(id uint64, c Caller, source int, closeOnExec bool) (errno unix.Errno, lost error) {
	interests := c.interests()
	if errno := n.replace(id, source, c.FD, closeOnExec); errno != 0 {
		return errno, nil
	}
	if err := c.register(interests, source); err != nil && n.StillValid(id) {
		return 0, err
	}
	return 0, nil
}
