package balancer

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// deferAccept sets whether a listener's connections are accepted only when they have
// brought their first bytes (TCP_DEFER_ACCEPT, man 7 tcp), so that a peek finds them.
// A client that is silent for a second is accepted all the same.
func deferAccept(listener syscall.RawConn, on bool) error {
	seconds := 0
	if on {
		seconds = 1
	}
	return setOption(listener, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds)
	})
}

// dropSYNs makes a listener answer no first packet of a handshake any more, while
// handshakes under way go on. A client sends it again after a second.
func dropSYNs(listener syscall.RawConn) error {
	// A socket's filter sees a segment from its TCP header on, whose byte 13 are the
	// flags (RFC 9293, section 3.1). It returns how much of the segment to keep.
	const flags, synAck, syn = 13, 0x12, 0x02
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: synAck},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	return setOption(listener, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
}

// passSYNs undoes dropSYNs.
func passSYNs(listener syscall.RawConn) error {
	return setOption(listener, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// setOption sets an option of a socket.
func setOption(socket syscall.RawConn, set func(fd int) error) error {
	return sock.ControlRaw(socket, func(fd int) error { return os.NewSyscallError("setsockopt", set(fd)) })
}
