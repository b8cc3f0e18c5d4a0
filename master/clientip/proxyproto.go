package clientip

// The PROXY protocol, versions 1 and 2, as in
// https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; "section" below
// means a section of it.
//
// Why not github.com/pires/go-proxyproto: it reads from a bufio.Reader, so it
// needs a stream and takes bytes beyond the header out of the socket, where the
// worker that gets the socket would miss them; and it allocates. We only peek,
// may have a part of the header, and must know how long it is exactly. The tests
// hold us to that library, and say where we differ.

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"
)

var (
	// ErrNoProxyHeader: the peer began with something else. It is no proxy that
	// speaks the PROXY protocol, or it is not configured to.
	ErrNoProxyHeader = errors.New("clientip: no PROXY protocol header of a trusted proxy; it must send one, or not be in --trusted-proxies")

	// ErrBadProxyHeader: the peer began a header that is malformed or longer than
	// we allow. It is the peer's fault unless the limit is too low.
	ErrBadProxyHeader = errors.New("clientip: PROXY protocol header malformed, or longer than --header-limit")

	// errIncomplete: so far it is a header, and the rest has not come yet.
	errIncomplete = errors.New("clientip: incomplete PROXY protocol header")
)

// Version 1, section 2.1.
const (
	signatureV1 = "PROXY"
	maxSizeV1   = 107 // with the CRLF
	crlf        = "\r\n"

	lineTCP4    = signatureV1 + " TCP4 "
	lineTCP6    = signatureV1 + " TCP6 "
	lineUnknown = signatureV1 + " UNKNOWN"
)

// Version 2, section 2.2.
const (
	signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"
	minSizeV2   = 16 // the signature, command, family and the length of the rest

	commandLocal = 0x20 // the version in the high four bits
	commandProxy = 0x21

	familyUnspec       = 0x00
	familyTCP4         = 0x11
	familyUDP4         = 0x12
	familyTCP6         = 0x21
	familyUDP6         = 0x22
	familyUnixStream   = 0x31
	familyUnixDatagram = 0x32

	blockIPv4 = 2*4 + 2*2
	blockIPv6 = 2*16 + 2*2
	blockUnix = 2 * 108
)

// parseProxy reads the PROXY protocol header at the start of data, which is all
// that the peer has sent so far or its beginning. Whatever it says other than
// errIncomplete remains true when more bytes come.
//
//   - err is nil: the header is complete and its n bytes, at most limit, are to be
//     consumed. source is the client, or the zero AddrPort when the header says
//     that the connection is the proxy's own or that it does not know: LOCAL,
//     UNSPEC and UNIX of version 2, UNKNOWN of version 1.
//   - errIncomplete: data begins a header, and is to be presented again with more.
//   - ErrNoProxyHeader: no header of either version begins so.
//   - ErrBadProxyHeader: the signature of a version is there, and what follows is
//     malformed or longer than limit.
//
// It allocates only for a malformed address or port, the error of netip or
// strconv.
func parseProxy(data []byte, limit int) (source netip.AddrPort, n int, err error) {
	s := text(data)
	switch {
	case strings.HasPrefix(s, signatureV1):
		return parseV1(s, min(limit, maxSizeV1))
	case strings.HasPrefix(s, signatureV2):
		return parseV2(data, limit)
	case agree(s, signatureV1), agree(s, signatureV2):
		return source, 0, errIncomplete
	default:
		return source, 0, ErrNoProxyHeader
	}
}

// signed tells whether data, which is all that the peer has sent so far, begins with the signature of a version.
func signed(data []byte) bool {
	s := text(data)
	return strings.HasPrefix(s, signatureV1) || strings.HasPrefix(s, signatureV2)
}

// parseV1 finds the end of the line. Until it is there no address is looked at, and
// neither CR nor LF alone is an end (section 2.1).
func parseV1(s string, limit int) (source netip.AddrPort, n int, err error) {
	s = s[:min(len(s), limit)]
	end := strings.IndexAny(s, crlf)
	if end < 0 {
		end = len(s)
	}
	line, rest := s[:end], s[end:]
	switch {
	case strings.HasPrefix(rest, crlf):
		if source, err = parseLine(line); err != nil {
			return source, 0, err
		}
		return source, end + len(crlf), nil
	case len(s) < limit && agree(rest, crlf) && beginsLine(line):
		return source, 0, errIncomplete
	default:
		return source, 0, ErrBadProxyHeader
	}
}

func beginsLine(s string) bool {
	return agree(s, lineTCP4) || agree(s, lineTCP6) || agree(s, lineUnknown)
}

func parseLine(line string) (netip.AddrPort, error) {
	if fields, ok := strings.CutPrefix(line, lineTCP4); ok {
		return parseFields(fields, netip.Addr.Is4)
	}
	if fields, ok := strings.CutPrefix(line, lineTCP6); ok {
		return parseFields(fields, netip.Addr.Is6)
	}
	if line == lineUnknown || strings.HasPrefix(line, lineUnknown+" ") {
		return netip.AddrPort{}, nil // the rest is to be ignored
	}
	return netip.AddrPort{}, ErrBadProxyHeader
}

// parseFields reads two addresses and two ports. A field that is missing is an empty
// one, which none of them can be. The family is the source's alone: nginx's realip
// module puts the client's address in its place, and leaves the destination as it is.
func parseFields(s string, family func(netip.Addr) bool) (netip.AddrPort, error) {
	src, s, _ := strings.Cut(s, " ")
	dst, s, _ := strings.Cut(s, " ")
	srcPort, dstPort, _ := strings.Cut(s, " ")
	addr, ok1 := parseAddr(src, family)
	_, ok2 := parseAddr(dst, netip.Addr.IsValid)
	port, ok3 := parsePort(srcPort)
	_, ok4 := parsePort(dstPort)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return netip.AddrPort{}, ErrBadProxyHeader
	}
	return netip.AddrPortFrom(addr.Unmap(), port), nil
}

// parseAddr refuses zones itself: the protocol has none, and netip would intern
// them.
func parseAddr(s string, family func(netip.Addr) bool) (addr netip.Addr, ok bool) {
	if strings.Contains(s, "%") {
		return addr, false
	}
	addr, err := netip.ParseAddr(s)
	return addr, err == nil && family(addr)
}

func parsePort(s string) (port uint16, ok bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && (s[0] != '0' || len(s) == 1)
}

// parseV2 judges a header by its first 16 bytes, then waits for the others. What
// follows the addresses, the TLVs, counts, and workers look at it.
func parseV2(data []byte, limit int) (source netip.AddrPort, n int, err error) {
	if len(data) < minSizeV2 {
		return source, 0, errIncomplete
	}
	n = minSizeV2 + int(binary.BigEndian.Uint16(data[14:]))
	size, ok := blockSize(data[12], data[13])
	switch {
	case !ok, minSizeV2+size > n, n > limit:
		return source, 0, ErrBadProxyHeader
	case len(data) < n:
		return source, 0, errIncomplete
	}
	return parseBlock(data[minSizeV2 : minSizeV2+size]), n, nil
}

// tlvsOf returns what follows the addresses in a header that is whole (section 2.2.1 ff.). What LOCAL brings is to be
// discarded.
func tlvsOf(header []byte) []byte {
	if len(header) < minSizeV2 || !strings.HasPrefix(text(header), signatureV2) || header[12] == commandLocal {
		return nil
	}
	size, _ := blockSize(header[12], header[13])
	return header[min(minSizeV2+size, len(header)):]
}

// blockSize returns the size of the addresses, 0 when there are none for us. The
// family of LOCAL is ignored, even one that does not exist. UDP is as good as TCP:
// the proxy may speak QUIC with the client.
func blockSize(command, family byte) (size int, ok bool) {
	switch {
	case command == commandLocal:
		return 0, true
	case command != commandProxy:
		return 0, false
	}
	switch family {
	case familyUnspec:
		return 0, true
	case familyTCP4, familyUDP4:
		return blockIPv4, true
	case familyTCP6, familyUDP6:
		return blockIPv6, true
	case familyUnixStream, familyUnixDatagram:
		return blockUnix, true
	}
	return 0, false
}

// parseBlock returns the source: the addresses come first, then the ports.
func parseBlock(b []byte) netip.AddrPort {
	switch len(b) {
	case blockIPv4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[2*4:]))
	case blockIPv6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[2*16:]))
	}
	return netip.AddrPort{}
}

// agree says whether a and b are the same as far as both go.
func agree(a, b string) bool {
	n := min(len(a), len(b))
	return a[:n] == b[:n]
}

// text returns b as a string without a copy. It must not outlive the call that b
// was passed to: the bytes change under it.
func text(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b))
}
