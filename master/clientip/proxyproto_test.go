package clientip

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"
)

// proxyLimit allows what the reference library allows.
var proxyLimit = minSizeV2 + int(proxyproto.MaxV2HeaderSize)

// proxyResult is what parseProxy says.
type proxyResult struct {
	source netip.AddrPort
	n      int
	err    error
}

func (p proxyResult) String() string {
	return fmt.Sprintf("%d bytes, source %v, error %v", p.n, p.source, p.err)
}

func readProxy(data []byte, limit int) (p proxyResult) {
	p.source, p.n, p.err = parseProxy(data, limit)
	return p
}

// proxyFrom is what parseProxy says of a good header of n bytes.
func proxyFrom(source string, n int) proxyResult {
	if source == "" {
		return proxyResult{n: n}
	}
	return proxyResult{source: netip.MustParseAddrPort(source), n: n}
}

// proxyV2 returns a header of version 2 with the true length.
func proxyV2(command, family byte, rest ...[]byte) []byte {
	all := slices.Concat(rest...)
	b := append([]byte(signatureV2), command, family)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(all))), all...)
}

var (
	block4     = []byte{192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb}
	block6     = block6Of("2001:db8::1", "2001:db8::2")
	blockMap   = block6Of("::ffff:192.0.2.1", "::ffff:198.51.100.1")
	tlv        = []byte{0x04, 0, 2, 'x', 'y'}
	longest6   = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	longestV1  = "PROXY UNKNOWN " + longest6 + " " + longest6 + " 65535 65535\r\n"
	longest4V1 = "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
	longest6V1 = "PROXY TCP6 " + longest6 + " " + longest6 + " 65535 65535\r\n"
)

// block6Of returns the addresses of version 2, with the ports of block4.
func block6Of(src, dst string) []byte {
	a, b := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return slices.Concat(a[:], b[:], []byte{0xdc, 0x04, 0x01, 0xbb})
}

// goodProxyHeader is a header that the specification allows, and the source that
// it names, "" for none.
type goodProxyHeader struct{ header, source string }

var goodProxyHeaders = []goodProxyHeader{
	// The longest lines of section 2.1.
	{longest4V1, "255.255.255.255:65535"},
	{longest6V1, "[" + longest6 + "]:65535"},
	{longestV1, ""},
	{"PROXY UNKNOWN\r\n", ""},

	{"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324"},
	{"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0"},
	{"PROXY TCP6 2001:db8::1 2001:DB8::2 56324 443\r\n", "[2001:db8::1]:56324"},
	{"PROXY TCP6 :: ::1 0 1\r\n", "[::]:0"},
	{"PROXY TCP6 2001:db8::1 5.6.7.8 1 2\r\n", "[2001:db8::1]:1"},
	{"PROXY TCP4 1.2.3.4 ::1 1 2\r\n", "1.2.3.4:1"},
	{"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6401 56324 443\r\n", "192.0.2.1:56324"},
	{"PROXY UNKNOWN \r\n", ""},
	{"PROXY UNKNOWN  TCP4 nonsense\x00\xff\r\n", ""},

	{string(proxyV2(0x21, 0x11, block4)), "192.0.2.1:56324"},
	{string(proxyV2(0x21, 0x11, block4, tlv)), "192.0.2.1:56324"},
	{string(proxyV2(0x21, 0x12, block4)), "192.0.2.1:56324"},
	{string(proxyV2(0x21, 0x21, block6)), "[2001:db8::1]:56324"},
	{string(proxyV2(0x21, 0x21, block6, tlv, tlv)), "[2001:db8::1]:56324"},
	{string(proxyV2(0x21, 0x22, block6)), "[2001:db8::1]:56324"},
	{string(proxyV2(0x21, 0x21, blockMap)), "192.0.2.1:56324"},
	{string(proxyV2(0x21, 0x31, make([]byte, 216))), ""},
	{string(proxyV2(0x21, 0x32, make([]byte, 216), tlv)), ""},
	{string(proxyV2(0x21, 0x00)), ""},
	{string(proxyV2(0x21, 0x00, block4, tlv)), ""},
	{string(proxyV2(0x20, 0x00)), ""},
	{string(proxyV2(0x20, 0x00, tlv)), ""},

	// LOCAL: its family is ignored, and so are addresses (section 2.2).
	{string(proxyV2(0x20, 0x11)), ""},
	{string(proxyV2(0x20, 0x11, block4)), ""},
	{string(proxyV2(0x20, 0x21, block4)), ""},
	{string(proxyV2(0x20, 0xff, tlv)), ""},

	// TLVs are not looked at, malformed ones neither.
	{string(proxyV2(0x21, 0x11, block4, []byte{0x04, 0xff})), "192.0.2.1:56324"},
	{string(proxyV2(0x21, 0x11, block4, make([]byte, 4096-12))), "192.0.2.1:56324"},
}

// TestProxyHeader also pins that a header may come byte by byte, and that what
// follows it is left alone.
func TestProxyHeader(t *testing.T) {
	for _, h := range goodProxyHeaders {
		want := proxyFrom(h.source, len(h.header))
		for _, after := range []string{"", "\r", "\n", " ", "GET / HTTP/1.1\r\n", h.header} {
			if got := readProxy([]byte(h.header+after), proxyLimit); got != want {
				t.Errorf("%.120q with %.20q after it is %v, want %v", h.header, after, got, want)
			}
		}
		for k := range len(h.header) {
			if got := readProxy([]byte(h.header[:k]), proxyLimit); got != (proxyResult{err: errIncomplete}) {
				t.Errorf("%.120q is %v, want errIncomplete", h.header[:k], got)
			}
		}
	}
}

// TestProxyHeaderLimit: a header as long as the limit is good; one that is longer is
// said to be bad when the limit is there, one of version 2 as soon as it says its
// length.
func TestProxyHeaderLimit(t *testing.T) {
	for _, h := range goodProxyHeaders {
		n := len(h.header)
		if got, want := readProxy([]byte(h.header), n), proxyFrom(h.source, n); got != want {
			t.Errorf("%.120q, limit %d, is %v, want %v", h.header, n, got, want)
		}
		known := n - 1
		if h.header[0] == '\r' {
			known = minSizeV2
		}
		for k := range n + 1 {
			want := proxyResult{err: errIncomplete}
			if k >= known {
				want.err = ErrBadProxyHeader
			}
			if got := readProxy([]byte(h.header[:k]), n-1); got != want {
				t.Errorf("%.120q, limit %d, is %v, want %v", h.header[:k], n-1, got, want)
			}
		}
	}
}

func TestNoProxyHeader(t *testing.T) {
	for _, s := range []string{
		"x", "GET / HTTP/1.1\r\n", "\x16\x03\x01", "\x00", " PROXY", "proxy TCP4", "\n", "\r\r",
		"PX", "PRX", "PROX ", "POST / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\r\n\r\n\r", "\r\nGET / HTTP/1.1\r\n", "\r\n\r\n\x00\r\nQUIT\r", "\r\n\r\n\x00\r\nQUIX",
	} {
		if got := readProxy([]byte(s), proxyLimit); got != (proxyResult{err: ErrNoProxyHeader}) {
			t.Errorf("%q is %v, want ErrNoProxyHeader", s, got)
		}
	}
}

// TestNoProxyHeaderFirstByte: the first byte that differs is enough, and is needed.
func TestNoProxyHeaderFirstByte(t *testing.T) {
	for _, signature := range []string{signatureV1, signatureV2} {
		for k := range len(signature) {
			for c := range 256 {
				data := append([]byte(signature[:k]), byte(c))
				want := ErrNoProxyHeader
				if strings.HasPrefix(signatureV1, string(data)) || strings.HasPrefix(signatureV2, string(data)) {
					want = errIncomplete
				}
				if got := readProxy(data, proxyLimit); got != (proxyResult{err: want}) {
					t.Errorf("%q is %v, want %v", data, got, want)
				}
			}
		}
	}
}

// TestBadProxyHeader: lines are bad with their last byte at the latest, headers of
// version 2 with the 16th.
func TestBadProxyHeader(t *testing.T) {
	for _, s := range []string{
		// The beginning of the line.
		"PROXY\r\n", "PROXY\n", "PROXYA", "PROXY  ", "PROXY\t", "PROXY \r\n", "PROXY X", "PROXY TCP5", "PROXY tcp4",
		"PROXY TCP4\r\n", "PROXY TCP4 \r\n", "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY UNKNOWM",
		"PROXY UNKNOWNX\r\n", "PROXY UNKNOWN\t\r\n",

		// Its end: neither alone, not even where everything is ignored.
		"PROXY UNKNOWN\n", "PROXY UNKNOWN\rx", "PROXY UNKNOWN \r\r", "PROXY UNKNOWN a\rb", "PROXY UNKNOWN a\nb\r\n",
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n", "PROXY TCP4 1.2.3.4\r5",

		// Too long; the CR is not enough.
		longestV1[:105] + "x\r", longestV1[:105] + "xx", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n",
		"PROXY TCP4 " + strings.Repeat("1", 96), "PROXY TCP6 " + strings.Repeat(":", 96),

		// Fields: too few, too many, and the spaces between them.
		"PROXY TCP4 1.2.3.4\r\n", "PROXY TCP4 1.2.3.4 5.6.7.8\r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
		"PROXY TCP4 1.2.3.4 5.6.7.8 1 \r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
		"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", "PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
		"PROXY TCP4 1.2.3.4 5.6.7.8  1 2\r\n", "PROXY TCP4 1.2.3.4 5.6.7.8 1  2\r\n", "PROXY TCP4 1.2.3.4\t5.6.7.8 1 2\r\n",

		// Addresses.
		"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", "PROXY TCP4 1.2.3.4.5 5.6.7.8 1 2\r\n", "PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
		"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n", "PROXY TCP4 1.2.3.4 5.6.7.08 1 2\r\n", "PROXY TCP4 1.2.3.4 x 1 2\r\n",
		"PROXY TCP4 x 5.6.7.8 1 2\r\n", "PROXY TCP4 16909060 5.6.7.8 1 2\r\n", "PROXY TCP4 1.2.3.4:5 5.6.7.8 1 2\r\n",
		"PROXY TCP6 1:2:3:4:5:6:7 ::1 1 2\r\n", "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n", "PROXY TCP6 ::1 12345:: 1 2\r\n",
		"PROXY TCP6 1::2::3 ::1 1 2\r\n", "PROXY TCP6 [::1] ::1 1 2\r\n", "PROXY TCP6 ::1 ::1/64 1 2\r\n",
		"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "PROXY TCP6 ::1 fe80::1%1 1 2\r\n", "PROXY TCP6 ::1% ::1 1 2\r\n",

		// The family is that of the source.
		"PROXY TCP4 ::1 ::1 1 2\r\n", "PROXY TCP4 ::1 1.2.3.4 1 2\r\n",
		"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
		"PROXY TCP4 ::ffff:1.2.3.4 5.6.7.8 1 2\r\n",

		// Version 2.
		string(proxyV2(0x11, 0x11, block4)), string(proxyV2(0x31, 0x11, block4)),
		string(proxyV2(0x01, 0x11, block4)), string(proxyV2(0x10, 0x00)),
		string(proxyV2(0x22, 0x11, block4)), string(proxyV2(0x2f, 0x11, block4)), string(proxyV2(0x21, 0x13, block4)),
		string(proxyV2(0x21, 0x41, block6)), string(proxyV2(0x21, 0x10, block4)), string(proxyV2(0x21, 0x01, block4)),
		string(proxyV2(0x21, 0x11)), string(proxyV2(0x21, 0x11, block4[1:])), string(proxyV2(0x21, 0x12, block4[1:])),
		string(proxyV2(0x21, 0x21, block4)), string(proxyV2(0x21, 0x21, block6[1:])), string(proxyV2(0x21, 0x22, block6[1:])),
		string(proxyV2(0x21, 0x31, make([]byte, 215))), string(proxyV2(0x21, 0x32, make([]byte, 215))),
		string(proxyV2(0x21, 0x11, make([]byte, 4097))), string(proxyV2(0x20, 0x00, make([]byte, 4097))),
		string(proxyV2(0x21, 0x11, make([]byte, 65535))), string(proxyV2(0x20, 0xff, make([]byte, 65535))),
	} {
		if s[0] == '\r' {
			s = s[:minSizeV2]
		}
		if got := readProxy([]byte(s), proxyLimit); got != (proxyResult{err: ErrBadProxyHeader}) {
			t.Errorf("%q is %v, want ErrBadProxyHeader", s, got)
		}
	}
}

// TestProxyPort walks the ports that section 2.1 allows, and their neighbours.
func TestProxyPort(t *testing.T) {
	for port := range 65536 {
		if got, ok := parsePort(fmt.Sprint(port)); !ok || int(got) != port {
			t.Errorf("port %d is %d, %v", port, got, ok)
		}
	}
	for _, port := range []string{
		"", "-1", "-0", "+1", "00", "01", "0080", "000000", "65536", "70000", "100000", "4294967376", "18446744073709551617",
		"0x50", "1e3", "1_0", "8 0", "80 ", " 80", "80\x00", "http", "٣",
	} {
		for _, ports := range []string{port + " 1", "1 " + port} {
			header := "PROXY TCP4 1.2.3.4 5.6.7.8 " + ports + "\r\n"
			if got := readProxy([]byte(header), proxyLimit); got != (proxyResult{err: ErrBadProxyHeader}) {
				t.Errorf("%q is %v, want ErrBadProxyHeader", header, got)
			}
		}
	}
}

// TestProxyV2EveryByte13And14 pins section 2.2 for every version, command, family and
// transport, with every length that may matter.
func TestProxyV2EveryByte13And14(t *testing.T) {
	needed := map[byte]int{0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
	body := make([]byte, 217)
	for command := range 256 {
		for family := range 256 {
			for _, n := range []int{0, 11, 12, 35, 36, 215, 216, 217} {
				need, known := needed[byte(family)]
				want := ErrBadProxyHeader
				if command == 0x20 || command == 0x21 && known && n >= need {
					want = nil
				}
				data := proxyV2(byte(command), byte(family), body[:n])
				if got := readProxy(data, proxyLimit); got.err != want || want == nil && got.n != len(data) {
					t.Fatalf("command %#x, family %#x, %d bytes: %v, want %v", command, family, n, got, want)
				}
			}
		}
	}
}

// TestProxyReferenceHeaders reads what the reference library writes.
func TestProxyReferenceHeaders(t *testing.T) {
	tcp := func(s string) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	udp := func(s string) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	unix := &net.UnixAddr{Net: "unix", Name: "/run/x"}
	for _, test := range []struct {
		src, dst net.Addr
		v1, v2   string
	}{
		{tcp("192.0.2.1:56324"), tcp("198.51.100.1:443"), "192.0.2.1:56324", "192.0.2.1:56324"},
		{tcp("[2001:db8::1]:56324"), tcp("[2001:db8::2]:443"), "[2001:db8::1]:56324", "[2001:db8::1]:56324"},
		{tcp("192.0.2.1:0"), tcp("[2001:db8::2]:443"), "192.0.2.1:0", "192.0.2.1:0"},
		{tcp("[2001:db8::1]:65535"), tcp("198.51.100.1:443"), "[2001:db8::1]:65535", "[2001:db8::1]:65535"},
		{udp("192.0.2.1:56324"), udp("198.51.100.1:443"), "", "192.0.2.1:56324"},
		{udp("[2001:db8::1]:56324"), udp("[2001:db8::2]:443"), "", "[2001:db8::1]:56324"},
		{unix, unix, "", ""},
		{nil, nil, "", ""},
	} {
		for version, source := range map[byte]string{1: test.v1, 2: test.v2} {
			for _, tlvs := range [][]proxyproto.TLV{nil, {{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: make([]byte, 128)}}} {
				h := proxyproto.HeaderProxyFromAddrs(version, test.src, test.dst)
				if err := h.SetTLVs(tlvs); err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				if _, err := h.WriteTo(&b); err != nil {
					t.Fatal(err)
				}
				want := proxyFrom(source, b.Len())
				if got := readProxy(append(b.Bytes(), "more"...), proxyLimit); got != want {
					t.Errorf("version %d of %v: %v, want %v", version, test.src, got, want)
				}
			}
		}
	}
}

func TestProxyAllocations(t *testing.T) {
	headers := []string{"", "x", "PROXY", "PROXY TCP4 1.2.3.4", "PROXYA", "PROXY UNKNOWN\n", "PROXY TCP4 \r",
		"PROXY UNKNOWNX\r\n", string(proxyV2(0x21, 0x11)), string(proxyV2(0x22, 0x00)), string(proxyV2(0x20, 0x00)[:15])}
	for _, h := range goodProxyHeaders {
		headers = append(headers, h.header)
	}
	for _, h := range headers {
		data := []byte(h)
		if n := testing.AllocsPerRun(100, func() { parseProxy(data, proxyLimit) }); n != 0 {
			t.Errorf("%.120q: %v allocations, want 0", h, n)
		}
	}
}

// TestProxySourceIsACopy: the source does not change with the bytes that it came
// from, of which text made strings.
func TestProxySourceIsACopy(t *testing.T) {
	for _, h := range goodProxyHeaders {
		data := []byte(h.header)
		got := readProxy(data, proxyLimit)
		clear(data)
		if want := proxyFrom(h.source, len(h.header)); got != want || got.source.String() != want.source.String() {
			t.Errorf("%.120q is %v after its bytes are gone, want %v", h.header, got, want)
		}
	}
}

// TestProxyDifferences has one example of each difference from the reference, so
// that we learn when it changes its mind.
func TestProxyDifferences(t *testing.T) {
	for _, data := range [][]byte{
		[]byte("PROXY UNKNOWN a\rb\r\n"),
		proxyV2(0x21, 0x00),
		proxyV2(0x20, 0x13),
		[]byte("PROXY TCP6 2001:db8::1 192.0.2.2 1 2\r\n"),
	} {
		ours, theirs := readProxy(data, proxyLimit), readProxyReference(data)
		if (ours.err == nil) == (theirs.err == nil) {
			t.Errorf("%q is %v, and the reference agrees: %v", data, ours, theirs)
		}
		if !stricterThanReference(data) && !looserThanReference(data) {
			t.Errorf("%q is not known to be a difference", data)
		}
	}
}

// stricterThanReference says whether data is what the reference accepts and we, on
// purpose, do not: CR alone in the part of an UNKNOWN line that is to be ignored. The
// sample of section 9 looks for the first CR too, and wants LF after it; a line must
// not end in two places for two receivers.
func stricterThanReference(data []byte) bool {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	return bytes.HasPrefix(line, []byte(lineUnknown+" ")) && bytes.Contains(line, []byte("\r"))
}

// looserThanReference says whether data is what we accept and the reference does
// not (section 2.2):
//
//   - PROXY with the family UNSPEC: "the receiver is free to accept the connection
//     anyway and use the real endpoint addresses", as the sample of section 9 does.
//   - LOCAL with a family that does not exist: the receiver must "discard the
//     protocol block including the family which is ignored".
//   - A line whose destination is of the other family, as nginx sends it when its
//     realip module has replaced the source.
func looserThanReference(data []byte) bool {
	if line, _, found := bytes.Cut(data, []byte(crlf)); found && bytes.HasPrefix(line, []byte(signatureV1)) {
		fields := strings.Split(string(line), " ")
		return len(fields) == 6 && strings.Contains(fields[2], ":") != strings.Contains(fields[3], ":")
	}
	if len(data) < minSizeV2 || !bytes.HasPrefix(data, []byte(signatureV2)) {
		return false
	}
	family := data[13]
	switch data[12] {
	case commandProxy:
		return family == familyUnspec
	case commandLocal:
		return family != familyUnspec && (family>>4 < 1 || family>>4 > 3 || family&15 < 1 || family&15 > 2)
	}
	return false
}

// readProxyReference is parseProxy by the reference library.
func readProxyReference(data []byte) proxyResult {
	in := bytes.NewReader(data)
	r := bufio.NewReaderSize(in, max(16, len(data)))
	h, err := proxyproto.Read(r)
	if err != nil {
		return proxyResult{err: err}
	}
	p := proxyResult{n: len(data) - in.Len() - r.Buffered()}
	if h.Command.IsLocal() {
		return p // the addresses are there for information
	}
	switch a := h.SourceAddr.(type) {
	case *net.TCPAddr:
		p.source = a.AddrPort()
	case *net.UDPAddr:
		p.source = a.AddrPort()
	}
	p.source = netip.AddrPortFrom(p.source.Addr().Unmap(), p.source.Port())
	return p
}

// FuzzProxyProtocol: what parseProxy says of the first bytes it says of them all, or
// that it needs more; a lower limit only refuses what is longer; bytes after the
// header are nothing to it; and the reference library says the same, but for
// stricterThanReference and looserThanReference.
func FuzzProxyProtocol(f *testing.F) {
	for _, h := range goodProxyHeaders {
		f.Add([]byte(h.header), uint16(0), uint16(107))
		f.Add([]byte(h.header+"GET / HTTP/1.1\r\n"), uint16(len(h.header)), uint16(len(h.header)-1))
	}
	for _, s := range []string{
		"", "x", "PROXY TCP4 1.2.3.4 ::1 1 2\r\n", "PROXY TCP6 fe80::1%1 ::1 1 2\r\n", "PROXY UNKNOWN a\rb\r\n",
		"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\n", longestV1[:105] + "x\r\n", string(proxyV2(0x21, 0x13, block4)),
	} {
		f.Add([]byte(s), uint16(len(s)/2), uint16(50))
	}
	f.Fuzz(func(t *testing.T, data []byte, k, limit uint16) {
		got := readProxy(data, proxyLimit)
		checkProxyShape(t, data, got)
		part := readProxy(data[:min(int(k), len(data))], proxyLimit)
		if part != got && part != (proxyResult{err: errIncomplete}) {
			t.Errorf("%q is %v, its first %d bytes %v", data, got, k, part)
		}
		checkProxyLimit(t, data, got, min(int(limit), proxyLimit))
		if got.err == nil {
			checkProxyAfter(t, data, got)
		}
		checkProxyReference(t, data, got)
	})
}

// checkProxyShape: one of the four answers, and nothing beside an error.
func checkProxyShape(t *testing.T, data []byte, got proxyResult) {
	switch got.err {
	case nil:
		addr := got.source.Addr()
		if got.n <= 0 || got.n > min(len(data), proxyLimit) || addr.Is4In6() || addr.Zone() != "" {
			t.Errorf("%q is %v", data, got)
		}
		if header := data[:min(got.n, len(data))]; !bytes.HasSuffix(header, tlvsOf(header)) {
			t.Errorf("%q has the TLVs %q", header, tlvsOf(header))
		}
	case errIncomplete, ErrNoProxyHeader, ErrBadProxyHeader:
		if got != (proxyResult{err: got.err}) {
			t.Errorf("%q is %v", data, got)
		}
	default:
		t.Errorf("%q is %v", data, got)
	}
}

func checkProxyLimit(t *testing.T, data []byte, got proxyResult, limit int) {
	want := got
	if got.n > limit {
		want = proxyResult{err: ErrBadProxyHeader}
	}
	low := readProxy(data, limit)
	early := got.err == errIncomplete && low == proxyResult{err: ErrBadProxyHeader}
	if low != want && !early {
		t.Errorf("%q is %v, with the limit %d %v", data, got, limit, low)
	}
	if low.err == errIncomplete && len(data) >= max(limit, minSizeV2) {
		t.Errorf("%q is incomplete, the limit %d", data, limit)
	}
}

func checkProxyAfter(t *testing.T, data []byte, got proxyResult) {
	other := bytes.Clone(data)
	for i := range other[got.n:] {
		other[got.n+i] ^= 0xff
	}
	for _, data := range [][]byte{data[:got.n], other, append(other, '\n')} {
		if again := readProxy(data, proxyLimit); again != got {
			t.Errorf("%q is %v, was %v with other bytes after it", data, again, got)
		}
	}
	if short := readProxy(data[:got.n-1], proxyLimit); short.err != errIncomplete {
		t.Errorf("%q without its last byte is %v", data[:got.n], short)
	}
}

func checkProxyReference(t *testing.T, data []byte, got proxyResult) {
	want := readProxyReference(data)
	ours, theirs := got.err == nil, want.err == nil
	none := errors.Is(want.err, proxyproto.ErrNoProxyProtocol)
	switch {
	case ours && theirs && got != want,
		ours && !theirs && !looserThanReference(data),
		!ours && theirs && !stricterThanReference(data),
		got.err == ErrNoProxyHeader && !none,
		got.err == ErrBadProxyHeader && none:
		t.Errorf("%q is %v, for the reference %v", data, got, want)
	}
}
