package sockdiag

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	attrInfo = 2 // INET_DIAG_INFO
	wantInfo = 1 << (attrInfo - 1)
)

// Traffic says what a connection has received and sent, and when. It is the zero value where the kernel does not
// tell: nothing was received, and all that has just happened.
type Traffic struct {
	Unread, Unsent           int    // bytes that the process has not read, and that the peer has not taken
	Received, Acked          uint64 // bytes in all, and those that the peer has acknowledged
	SinceReceived, SinceSent time.Duration
}

// ListTraffic is List with the traffic of connections, which costs about twice as much.
func ListTraffic(port uint16, states ...State) ([]Socket, error) {
	all, err := askFor(port, maskOf(states), wantInfo)
	if err != nil {
		return List(port, states...)
	}
	return all, nil
}

// parse reads the part of a struct tcp_info that every kernel since 4.1 has.
func (t *Traffic) parse(info []byte) {
	var layout unix.TCPInfo
	if len(info) < int(unsafe.Offsetof(layout.Bytes_received))+8 {
		return
	}
	ago := func(at uintptr) time.Duration {
		return time.Duration(binary.NativeEndian.Uint32(info[at:])) * time.Millisecond
	}
	t.SinceSent = ago(unsafe.Offsetof(layout.Last_data_sent))
	t.SinceReceived = ago(unsafe.Offsetof(layout.Last_data_recv))
	t.Acked = binary.NativeEndian.Uint64(info[unsafe.Offsetof(layout.Bytes_acked):])
	t.Received = binary.NativeEndian.Uint64(info[unsafe.Offsetof(layout.Bytes_received):])
}
