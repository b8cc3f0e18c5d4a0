package fdpass

import (
	"encoding/base64"
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

	// MaxDetails is how many bytes of details there may be in one message, of one connection or of several.
	MaxDetails = 4096

	version        = 1
	headerSize     = 8
	recordSize     = 24
	longRecordSize = 28 // with the length of the connection's details
	maxRecordSize  = 56
	maxMessage     = headerSize + MaxBatch*maxRecordSize + MaxDetails
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

	TypeHandBack Type = 9
	TypeSlots    Type = 10
	TypePass     Type = 11
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
	case TypeHandBack:
		return "hand back"
	case TypeSlots:
		return "slots"
	case TypePass:
		return "pass"
	default:
		return "type " + strconv.Itoa(int(t))
	}
}

// Flags say more about a handed-off connection.
type Flags uint8

const (
	// FlagProxied: the master has read the PROXY protocol header of a trusted proxy, which is
	// the socket's peer, and Client is the client that it named, or itself when it named none.
	FlagProxied Flags = 1
	// FlagUnplaced: nothing of a request had come when the master chose the worker, so the first one may be
	// another slot's.
	FlagUnplaced Flags = 2
	// FlagUnix: the master has accepted the connection from a Unix socket of its own. Its peer has no address, and is trusted as a
	// proxy, since the socket's rights say who may connect. Nothing else says so: a peer that is not known is trusted by nobody.
	FlagUnix Flags = 4
)

// UnixPeer stands for the peer of a connection with FlagUnix where an address is wanted (Handoff.Source). No socket has it, and no
// text that a client sends becomes it, since zones are not taken from there.
var UnixPeer = netip.IPv6Unspecified().WithZone("unix")

// Handoff is one open connection on its way. Whoever holds a Handoff owns its
// descriptor, unless the function that lends it says otherwise.
type Handoff struct {
	FD     int            // a connected, non-blocking socket, of TCP or with FlagUnix a Unix socket
	Client netip.AddrPort // the client as the master knows it; zero when unknown, as with FlagUnix until a PROXY header names it
	Flags  Flags
	// Details are what else a PROXY protocol header said, at most MaxDetails bytes, else none of them travel. They
	// reach who can read them (Conn.SendDetails).
	Details Details
}

// Source is where the connection is from: Client's address, UnixPeer, or the zero Addr if that is unknown.
func (h *Handoff) Source() netip.Addr {
	switch addr := h.Client.Addr(); {
	case addr.IsValid() && addr != UnixPeer:
		return addr
	case h.Flags&FlagUnix != 0:
		return UnixPeer
	}
	return netip.Addr{}
}

// Details are bytes. In JSON they are in base64.
type Details string

// MarshalText implements encoding.TextMarshaler.
func (d Details) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, []byte(d)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Details) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("fdpass: details: %w", err)
	}
	*d = Details(b)
	return nil
}

// ErrMalformed: the other side sent something that is not this protocol. It is
// their fault.
var ErrMalformed = errors.New("fdpass: malformed message")

// appendMessage appends a message with the records of hs, and their details if it is to have any; descriptors
// travel beside it.
func appendMessage(b []byte, t Type, hs []Handoff, withDetails bool) []byte {
	size, details := recordSize, 0
	if withDetails {
		for i := range hs {
			details += len(hs[i].sentDetails())
		}
	}
	if details > 0 {
		size = longRecordSize
	}
	b = append(b, version, byte(t))
	b = binary.BigEndian.AppendUint16(b, uint16(len(hs)))
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = binary.BigEndian.AppendUint16(b, uint16(details))
	for i := range hs {
		b = appendRecord(b, &hs[i])
		if details > 0 {
			b = binary.BigEndian.AppendUint32(b, uint32(len(hs[i].sentDetails()))<<16)
		}
	}
	for i := 0; details > 0 && i < len(hs); i++ {
		b = append(b, hs[i].sentDetails()...)
	}
	return b
}

// sentDetails are those that fit into a message.
func (h *Handoff) sentDetails() Details {
	if len(h.Details) > MaxDetails {
		return ""
	}
	return h.Details
}

// Fit returns how many of hs, from the first on, one message can carry with their details: at least one if there is one.
func Fit(hs []Handoff) (n int) {
	details := 0
	for n < len(hs) && n < MaxBatch {
		if details += len(hs[n].sentDetails()); details > MaxDetails {
			break
		}
		n++
	}
	return n
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

// parts are those of a message. They borrow its bytes.
type parts struct {
	t       Type
	count   int
	size    int // of one record
	records []byte
	details []byte // of all connections, in their order
}

// parse takes a message apart.
func parse(b []byte) (p parts, err error) {
	if len(b) < headerSize {
		return p, fmt.Errorf("%w: %d bytes, shorter than its header", ErrMalformed, len(b))
	}
	if b[0] != version {
		return p, fmt.Errorf("%w: version %d, want %d", ErrMalformed, b[0], version)
	}
	count := int(binary.BigEndian.Uint16(b[2:]))
	size := int(binary.BigEndian.Uint16(b[4:]))
	details := int(binary.BigEndian.Uint16(b[6:]))
	if count > MaxBatch || size < recordSize || size > maxRecordSize || details > MaxDetails {
		return p, fmt.Errorf("%w: %d records of %d bytes and %d bytes of details", ErrMalformed, count, size, details)
	}
	end := headerSize + count*size
	if len(b) != end+details {
		return p, fmt.Errorf("%w: %d bytes, its header says %d", ErrMalformed, len(b), end+details)
	}
	p = parts{t: Type(b[1]), count: count, size: size, records: b[headerSize:end], details: b[end:]}
	if sum := p.sumOfDetails(); sum != details {
		return parts{}, fmt.Errorf("%w: %d bytes of details, its records say %d", ErrMalformed, details, sum)
	}
	return p, nil
}

// record returns the i-th one.
func (p *parts) record(i int) []byte { return p.records[i*p.size : (i+1)*p.size] }

// lenDetails returns how many bytes of details the i-th connection has.
func (p *parts) lenDetails(i int) int {
	if p.size < longRecordSize || len(p.details) == 0 {
		return 0
	}
	return int(binary.BigEndian.Uint16(p.record(i)[recordSize:]))
}

func (p *parts) sumOfDetails() (sum int) {
	for i := range p.count {
		sum += p.lenDetails(i)
	}
	return sum
}

// handoffs appends the connections whose descriptors have arrived, which are the first of them.
func (p *parts) handoffs(hs []Handoff, fds []int) ([]Handoff, error) {
	details := p.details
	for i, fd := range fds {
		h, err := parseRecord(p.record(i))
		if err != nil {
			return hs, err
		}
		h.FD = fd
		if n := p.lenDetails(i); n > 0 {
			h.Details, details = Details(details[:n]), details[n:]
		}
		hs = append(hs, h)
	}
	return hs, nil
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
