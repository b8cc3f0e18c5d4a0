package fdpass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// Limits of the wire format.
const (
	// MaxBatch is the largest number of connections in one message. The kernel
	// takes up to 253 (SCM_MAX_FD); beyond a few dozen a larger batch saves
	// nothing and puts more eggs into one basket.
	MaxBatch = 64

	version       = 1
	headerSize    = 8
	recordSize    = 24
	maxRecordSize = 56
	maxMessage    = headerSize + MaxBatch*maxRecordSize
)

// Type says what a message is for.
type Type uint8

// The types of messages; doc.go says who sends which.
const (
	TypeHandoff Type = 1
	TypeReady   Type = 2
	TypeLeave   Type = 3
	TypeReturn  Type = 4
	TypeListen  Type = 5
	TypeReport  Type = 6
	TypePing    Type = 7
	TypePong    Type = 8
)

func (t Type) String() string {
	switch t {
	case TypeHandoff:
		return "handoff"
	case TypeReady:
		return "ready"
	case TypeLeave:
		return "leave"
	case TypeReturn:
		return "return"
	case TypeListen:
		return "listen"
	case TypeReport:
		return "report"
	case TypePing:
		return "ping"
	case TypePong:
		return "pong"
	default:
		return "type " + strconv.Itoa(int(t))
	}
}

// Flags say more about a handed-off connection.
type Flags uint8

// FlagProxied: the master has read the PROXY protocol header of a trusted proxy, which is
// the socket's peer, and Client is the client that it named, or itself when it named none.
const FlagProxied Flags = 1

// Handoff is one open connection on its way. Whoever holds a Handoff owns its
// descriptor, unless the function that lends it says otherwise.
type Handoff struct {
	FD     int            // a connected, non-blocking TCP socket
	Client netip.AddrPort // the client as the master knows it; zero when unknown
	Flags  Flags
}

// ErrMalformed: the other side sent something that is not this protocol. It is
// their fault.
var ErrMalformed = errors.New("fdpass: malformed message")

// appendMessage appends a message with the records of hs; descriptors travel
// beside it.
func appendMessage(b []byte, t Type, hs []Handoff) []byte {
	b = append(b, version, byte(t))
	b = binary.BigEndian.AppendUint16(b, uint16(len(hs)))
	b = binary.BigEndian.AppendUint16(b, recordSize)
	b = append(b, 0, 0)
	for i := range hs {
		b = appendRecord(b, &hs[i])
	}
	return b
}

func appendRecord(b []byte, h *Handoff) []byte {
	addr := h.Client.Addr()
	var family byte
	var raw [16]byte
	var scope uint32
	switch {
	case addr.Is4():
		family = 4
		four := addr.As4()
		copy(raw[:], four[:])
	case addr.Is6():
		family, raw, scope = 6, addr.As16(), scopeOf(addr)
	}
	b = append(b, byte(h.Flags), family)
	b = binary.BigEndian.AppendUint16(b, h.Client.Port())
	b = append(b, raw[:]...)
	return binary.BigEndian.AppendUint32(b, scope)
}

// scopeOf returns the interface index that the zone holds; zones of connections
// are numbers, names come only from configuration.
func scopeOf(addr netip.Addr) uint32 {
	zone := addr.Zone()
	if zone == "" {
		return 0 // without the error that ParseUint would allocate
	}
	n, err := strconv.ParseUint(zone, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// parseHeader returns the type, the records and the size of one record.
func parseHeader(b []byte) (t Type, records []byte, size int, err error) {
	if len(b) < headerSize {
		return 0, nil, 0, fmt.Errorf("%w: %d bytes, shorter than its header", ErrMalformed, len(b))
	}
	if b[0] != version {
		return 0, nil, 0, fmt.Errorf("%w: version %d, want %d", ErrMalformed, b[0], version)
	}
	count := int(binary.BigEndian.Uint16(b[2:]))
	size = int(binary.BigEndian.Uint16(b[4:]))
	if count > MaxBatch || size < recordSize || size > maxRecordSize {
		return 0, nil, 0, fmt.Errorf("%w: %d records of %d bytes", ErrMalformed, count, size)
	}
	if want := headerSize + count*size; len(b) != want {
		return 0, nil, 0, fmt.Errorf("%w: %d bytes, its header says %d", ErrMalformed, len(b), want)
	}
	return Type(b[1]), b[headerSize:], size, nil
}

// parseRecord reads one record; the descriptor is filled in by the caller.
func parseRecord(b []byte) (Handoff, error) {
	h := Handoff{FD: -1, Flags: Flags(b[0])}
	port := binary.BigEndian.Uint16(b[2:])
	switch b[1] {
	case 0:
	case 4:
		h.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case 6:
		addr := netip.AddrFrom16([16]byte(b[4:20]))
		if scope := binary.BigEndian.Uint32(b[20:]); scope != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		h.Client = netip.AddrPortFrom(addr, port)
	default:
		return h, fmt.Errorf("%w: address family %d", ErrMalformed, b[1])
	}
	return h, nil
}
