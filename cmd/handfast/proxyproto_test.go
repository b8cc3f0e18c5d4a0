package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/handfast/handfast/worker"
)

// TestProxyProtocol: the header is consumed, what follows is left, the worker's peer is the client, and it has
// the header's TLVs.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	const slots = 4
	untrusted := source(9)
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--proxy-protocol", "--trusted-proxies", proxyAt.String()}})
	for i := range 20 {
		client := proxied(i)
		for version := byte(1); version <= 2; version++ {
			header := proxyHeader(t, version, client)
			for _, cut := range []int{0, 1, 8, len(header) - 1} {
				a := b.raw(proxyAt, header[:cut], header[cut:]+"then this")
				if a.slot != slotOf(client, slots) || a.client != client.String() || a.body != "then this" {
					t.Errorf("version %d, cut at %d: %+v, want slot %d", version, cut, a, slotOf(client, slots))
				}
			}
		}
	}
	for _, own := range []string{"PROXY UNKNOWN\r\n", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"} {
		if a := b.raw(proxyAt, own+"then this"); a.slot != slotOf(proxyAt, slots) || a.client != proxyAt.String() || a.body != "then this" {
			t.Errorf("%q: %+v", own, a)
		}
	}
	header := proxyHeader(t, 2, proxied(1), proxyproto.TLV{Type: worker.TLVUniqueID, Value: []byte("c-1")}, proxyproto.TLV{Type: worker.TLVAWS, Value: []byte("\x01vpce-1")})
	for _, cut := range []int{0, len(header) - 1} { // which waits for its last byte, too
		if a := b.raw(proxyAt, header[:cut], header[cut:]+"then this"); a.client != proxied(1).String() || a.body != "TLV 0x5 \"c-1\"\nTLV 0xea \"\\x01vpce-1\"\nthen this" {
			t.Errorf("with TLVs, cut at %d: %+v", cut, a)
		}
	}
	if a := b.raw(untrusted, "PROX, or not"); a.slot != slotOf(untrusted, slots) || a.body != "PROX, or not" {
		t.Errorf("a peer that is not trusted: %+v", a)
	}
	for _, refused := range []struct {
		from netip.Addr
		text string
	}{
		{proxyAt, "no header"},
		{proxyAt, "PROXY TCP4 one two 3 4\r\n"},
		{untrusted, "PROXY TCP4 192.0.2.1 192.0.2.2 3 4\r\nthen this"},
	} {
		if answer, err := io.ReadAll(b.send(refused.from, refused.text)); len(answer) > 0 || isTimeout(err) {
			t.Errorf("%v, %q: %q, %v, want a closed connection", refused.from, refused.text, answer, err)
		}
	}
	if refused := b.await("connection refused"); !strings.Contains(refused.text, "PROXY protocol header") {
		t.Errorf("the log does not say why: %s", refused.text)
	}
}

// TestProxyProtocolOptional: health checks of a trusted network come without a header, and proxies beside them with one. One on
// which the server speaks first waits for the header timeout.
func TestProxyProtocolOptional(t *testing.T) {
	t.Parallel()
	const slots = 16
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--proxy-protocol", "--proxy-protocol-optional", proxyAt.String(), "--header-timeout", "1s"}})
	client := proxied(3)
	if a := b.raw(proxyAt, proxyHeader(t, 2, client)+"then this"); a.slot != slotOf(client, slots) || a.client != client.String() || a.body != "then this" {
		t.Errorf("with a header: %+v", a)
	}
	if a := b.raw(proxyAt, "no header"); a.slot != slotOf(proxyAt, slots) || a.client != proxyAt.String() || a.body != "no header" {
		t.Errorf("without: %+v", a)
	}
	conn := b.park(proxyAt, "PR") // may be a header yet
	text := make([]byte, len("slot="))
	if _, err := io.ReadFull(conn, text); err != nil || string(text) != "slot=" {
		t.Errorf("after the header timeout: %q, %v", text, err)
	}
	if answer, err := io.ReadAll(b.send(source(9), "other peers need one")); len(answer) > 0 || isTimeout(err) {
		t.Errorf("a trusted peer that must send one: %q, %v, want a closed connection", answer, err)
	}
}

// TestProxyProtocolAndHeader: PROXY first, and if that names a trusted proxy, its header.
func TestProxyProtocolAndHeader(t *testing.T) {
	t.Parallel()
	const slots = 4
	b := start(t, slots, options{flags: []string{"--proxy-protocol", "--behind-proxy"}})
	inner, client := netip.MustParseAddr("10.1.2.3"), proxied(3)
	a := b.ask(proxyAt, proxyHeader(t, 2, inner)+forwardedFor(client))
	if a.slot != slotOf(client, slots) || a.client != inner.String() {
		t.Errorf("%+v, want slot %d and client %v", a, slotOf(client, slots), inner)
	}
	a = b.ask(proxyAt, proxyHeader(t, 1, client)+forwardedFor(proxied(5)))
	if a.slot != slotOf(client, slots) {
		t.Errorf("a client that names another one: %+v, want slot %d", a, slotOf(client, slots))
	}
	a = b.ask(proxyAt, proxyHeader(t, 2, inner), forwardedFor(client))
	if a.slot != slotOf(client, slots) {
		t.Errorf("in two segments: %+v, want slot %d", a, slotOf(client, slots))
	}
}

func proxyHeader(t *testing.T, version byte, client netip.Addr, tlvs ...proxyproto.TLV) string {
	t.Helper()
	to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.250"), 80))
	if client.Is6() {
		to.IP = net.ParseIP("2001:db8::250")
	}
	header := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 4711)), to)
	err := header.SetTLVs(tlvs)
	if err != nil {
		t.Fatal(err)
	}
	text, err := header.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// raw sends text to a worker that plays "raw" and returns its answer, whose body is what
// reached the worker.
func (b *instance) raw(from netip.Addr, parts ...string) (a answer) {
	b.t.Helper()
	parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	conn := b.send(from, parts...)
	defer conn.Close()
	text, err := io.ReadAll(conn)
	m := answerLine.FindStringSubmatch(string(text))
	if err != nil || m == nil {
		b.t.Fatalf("%q: answer %q, %v", parts, text, err)
	}
	a.slot, _ = strconv.Atoi(m[1])
	a.client, a.body = m[4], string(text[len(m[0]):])
	return a
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
