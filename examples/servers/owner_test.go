package servers_test

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/sockdiag"
)

// Of servers that do not say which process answers, the kernel says who has the other end.

// owner returns a process that has the other end of a connection that is still open.
func owner(c net.Conn) (pid int, err error) {
	inode, err := otherEnd(c)
	if err != nil {
		return 0, err
	}
	if inode == 0 { // answered, and closed at once
		return 0, fmt.Errorf("%w: the other end of %v is closed", errGone, c.LocalAddr())
	}
	for pid := range holders(inode) {
		return pid, nil // a child rather than its parent
	}
	return 0, fmt.Errorf("%w: who had the other end of %v", errGone, c.LocalAddr())
}

// otherEnd returns the inode of the other end of a connection of IPv4, 0 if it is closed. It asks for this socket alone
// (struct inet_diag_req_v2 in linux/inet_diag.h): a walk over all, for each answer, would be most of a test's work.
func otherEnd(c net.Conn) (inode uint64, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	const question, size = 20, unix.SizeofNlMsghdr + 56 // SOCK_DIAG_BY_FAMILY
	b := binary.NativeEndian.AppendUint32(nil, size)
	b = binary.NativeEndian.AppendUint16(b, question)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...)
	b = append(b, unix.AF_INET, unix.IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff)
	ours, theirs := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	b = binary.BigEndian.AppendUint16(b, theirs.Port())
	b = binary.BigEndian.AppendUint16(b, ours.Port())
	for _, at := range []netip.AddrPort{theirs, ours} {
		b = append(append(b, at.Addr().AsSlice()...), make([]byte, 12)...)
	}
	b = append(b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // any interface, no cookie
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	b = make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return 0, os.NewSyscallError("recvfrom", err)
	}
	const answer = 72 // struct inet_diag_msg: state at 1, inode at 68
	if body := b[unix.SizeofNlMsghdr:n]; binary.NativeEndian.Uint16(b[4:]) == question && len(body) >= answer && body[1] != unix.BPF_TCP_LISTEN {
		inode = uint64(binary.NativeEndian.Uint32(body[68:]))
	}
	return inode, nil // else there is no such socket, or only the listener
}

// holders finds the processes that have a socket open, the highest number first: those that tests
// have started come before all others, whose descriptors are many.
func holders(inode uint64) iter.Seq[int] {
	want := fmt.Sprintf("socket:[%d]", inode)
	return func(yield func(int) bool) {
		entries, _ := os.ReadDir("/proc")
		var pids []int
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil {
				pids = append(pids, pid)
			}
		}
		slices.Sort(pids)
		for _, pid := range slices.Backward(pids) {
			if has(pid, want) && !yield(pid) {
				return
			}
		}
	}
}

// has tells whether a process has open what its descriptors call so.
func has(pid int, name string) bool {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(folder) // none if it has ended
	return slices.ContainsFunc(entries, func(entry os.DirEntry) bool {
		is, err := os.Readlink(filepath.Join(folder, entry.Name()))
		return err == nil && is == name
	})
}

// accepting returns the processes that have a listener of a port open.
func accepting(t *testing.T, port uint16) (pids []int) {
	t.Helper()
	listeners, err := sockdiag.List(port, sockdiag.Listening)
	check(t, err)
	for _, s := range listeners {
		pids = slices.AppendSeq(pids, holders(s.Inode))
	}
	return pids
}

// ancestors returns a process, its process group, and who has started it, and so on; none if it
// has ended.
func ancestors(pid int) (above []int) {
	for pid > 1 && len(above) < 32 {
		group, err := syscall.Getpgid(pid)
		if err != nil {
			break
		}
		above = append(above, pid, group)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		pid, _ = strconv.Atoi(fields[1]) // man 5 proc_pid_stat
	}
	return above
}
