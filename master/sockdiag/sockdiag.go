package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// State is that of a TCP socket (linux/tcp_states.h).
type State uint8

// The states that callers ask for.
const (
	Established State = unix.BPF_TCP_ESTABLISHED
	SynSent     State = unix.BPF_TCP_SYN_SENT
	SynReceived State = unix.BPF_TCP_SYN_RECV // a handshake that is under way
	CloseWait   State = unix.BPF_TCP_CLOSE_WAIT
	FinWait1    State = unix.BPF_TCP_FIN_WAIT1
	FinWait2    State = unix.BPF_TCP_FIN_WAIT2
	LastAck     State = unix.BPF_TCP_LAST_ACK
	Closing     State = unix.BPF_TCP_CLOSING
	Listening   State = unix.BPF_TCP_LISTEN
)

// Socket is a TCP socket as the kernel describes it.
type Socket struct {
	State  State
	Family uint8 // AF_INET or AF_INET6: a connection of IPv4 on a listener of both families is of AF_INET6
	// Local and Remote are unmapped. Remote is not valid for a listener.
	Local, Remote netip.AddrPort
	OnlyIPv6      bool // of a listener; false where we do not know
	Inode         uint64
	Cookie        uint64 // by which the kernel tells it from all others; 0 where we do not know
	UID           uint32 // of its owner
	Queue         int    // of a listener: connections that no process has accepted

	Traffic // of a connection, from ListTraffic
}

// Accepted tells whether a process has the connection. One that was accepted and closed is in
// another state than Established and CloseWait.
func (s *Socket) Accepted() bool { return s.Inode != 0 }

// ComesTo tells whether a connection may have come to a listener at an address: if that is "::", to
// one of both families or of IPv6 alone.
func (s *Socket) ComesTo(listener netip.Addr) bool {
	listener = listener.Unmap().WithZone("")
	return listener.Is4() == (s.Family == unix.AF_INET) && (listener.IsUnspecified() || listener == s.Local.Addr())
}

// List returns the sockets with this local port that are in one of the states.
func List(port uint16, states ...State) ([]Socket, error) {
	mask := maskOf(states)
	all, err := ask(port, mask)
	if err != nil { // no such module, or a sandbox
		if all, procErr := readTables(port, mask); procErr == nil {
			return all, nil
		}
	}
	return all, err
}

// Each calls visit with every socket of List, one after the other: so a hundred thousand need no memory. What it is given is its own
// until it returns. On an error it may have seen some.
func Each(port uint16, visit func(*Socket), states ...State) error {
	var one Socket
	seen, mask := false, maskOf(states)
	each := func(s Socket) {
		seen, one = true, s
		visit(&one)
	}
	err := eachFor(port, mask, 0, each)
	if err != nil && !seen {
		procErr := walk("/proc/net", "tcp", mask, func(s Socket) {
			if s.Local.Port() == port {
				each(s)
			}
		})
		if procErr == nil {
			return nil
		}
	}
	return err
}

func maskOf(states []State) (mask uint32) {
	for _, state := range states {
		mask |= 1 << state
	}
	return mask
}

// anyPort in a question is each.
const anyPort = 0

// ask sends the question by netlink.
func ask(port uint16, states uint32) ([]Socket, error) { return askFor(port, states, 0) }

// askFor is ask with extensions (linux/inet_diag.h) to each socket's answer.
func askFor(port uint16, states uint32, extensions uint8) (all []Socket, err error) {
	err = eachFor(port, states, extensions, func(s Socket) { all = append(all, s) })
	if err != nil {
		return nil, err
	}
	return all, nil
}

// eachFor calls each with every socket of the answer.
func eachFor(port uint16, states uint32, extensions uint8, each func(Socket)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("sockdiag: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	// The kernel answers before it returns; a sandbox in its place may not.
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	buf := make([]byte, 32<<10)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := dump(fd, request(family, port, states, extensions), buf, each); err != nil {
			if family == unix.AF_INET6 && errors.Is(err, unix.ENOENT) {
				break // a kernel without IPv6
			}
			return fmt.Errorf("sockdiag: %w", err)
		}
	}
	return nil
}

const (
	sockDiagByFamily = 20 // linux/sock_diag.h
	requestSize      = unix.SizeofNlMsghdr + 56
	answerSize       = 72 // struct inet_diag_msg
	attrOnlyIPv6     = 11 // INET_DIAG_SKV6ONLY
)

// request is a struct inet_diag_req_v2 behind its header (linux/inet_diag.h).
func request(family uint8, port uint16, states uint32, extensions uint8) []byte {
	b := make([]byte, requestSize)
	binary.NativeEndian.PutUint32(b, requestSize)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := b[unix.SizeofNlMsghdr:]
	r[0], r[1], r[2] = family, unix.IPPROTO_TCP, extensions
	binary.NativeEndian.PutUint32(r[4:], states)
	binary.BigEndian.PutUint16(r[8:], port)
	return b
}

// dump sends a request and calls each with every socket of the answer.
func dump(fd int, request, buf []byte, each func(Socket)) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if done, err := parse(buf[:n], each); done || err != nil {
			return err
		}
	}
}

// errAnswer: the answer is not in the kernel's format.
var errAnswer = errors.New("an answer that cannot be")

// parse reads a part of an answer, and tells whether it was the last one.
func parse(b []byte, each func(Socket)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, errAnswer
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errAnswer
			}
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		default:
			s, ok := parseSocket(body)
			if !ok {
				return false, errAnswer
			}
			each(s)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}

// parseSocket reads a struct inet_diag_msg and its attributes.
func parseSocket(b []byte) (s Socket, ok bool) {
	if len(b) < answerSize {
		return s, false
	}
	s.Family, s.State = b[0], State(b[1])
	if s.State == unix.BPF_TCP_NEW_SYN_RECV {
		s.State = SynReceived
	}
	address := func(at []byte, port []byte) netip.AddrPort {
		addr := netip.AddrFrom4([4]byte(at))
		if s.Family == unix.AF_INET6 {
			addr = netip.AddrFrom16([16]byte(at)).Unmap()
		}
		return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port))
	}
	s.Local = address(b[8:], b[4:])
	if s.State != Listening {
		s.Remote = address(b[24:], b[6:])
		s.Unread, s.Unsent = int(binary.NativeEndian.Uint32(b[56:])), int(binary.NativeEndian.Uint32(b[60:]))
	} else {
		s.Queue = int(binary.NativeEndian.Uint32(b[56:]))
	}
	s.Cookie = uint64(binary.NativeEndian.Uint32(b[48:]))<<32 | uint64(binary.NativeEndian.Uint32(b[44:]))
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = uint64(binary.NativeEndian.Uint32(b[68:]))
	for b = b[answerSize:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		switch value := b[unix.SizeofRtAttr:size]; binary.NativeEndian.Uint16(b[2:]) {
		case attrOnlyIPv6:
			s.OnlyIPv6 = len(value) > 0 && value[0] != 0
		case attrInfo:
			s.Traffic.parse(value)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return s, true
}
