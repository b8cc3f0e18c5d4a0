package worker

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/handfast/handfast/fdpass"
)

// FuzzTLVs: what is read, written again, is what was there, up to where it is malformed.
func FuzzTLVs(f *testing.F) {
	for _, seed := range []string{"", "\x05\x00\x03abc", "\x05\x00\x00\x20\x00\x08\x01\x00\x00\x00\x00\x21\x00\x00", "\x05", "\x05\x00", "\x05\x00\x01", "\xea\xff\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		for kind, value := range TLVs(b) {
			again = append(binary.BigEndian.AppendUint16(append(again, kind), uint16(len(value))), value...)
		}
		rest, whole := bytes.CutPrefix(b, again)
		if !whole {
			t.Fatalf("%x becomes %x", b, again)
		}
		if len(rest) >= 3 && int(binary.BigEndian.Uint16(rest[1:])) <= len(rest)-3 {
			t.Errorf("%x: %x is not read", b, rest)
		}
	})
}

// TestProxyTLV: the first of a type, and no allocation where there are none.
func TestProxyTLV(t *testing.T) {
	c := &Conn{details: fdpass.Details("\x05\x00\x03abc\xea\x00\x06\x01vpce-\x05\x00\x01d")}
	if got := c.ProxyTLV(TLVUniqueID); string(got) != "abc" {
		t.Errorf("unique id %q", got)
	}
	if got := c.ProxyTLV(TLVAWS); string(got) != "\x01vpce-" {
		t.Errorf("endpoint %q", got)
	}
	if got := c.ProxyTLV(TLVALPN); got != nil {
		t.Errorf("ALPN %q", got)
	}
	none := &Conn{}
	if n := testing.AllocsPerRun(100, func() { none.ProxyTLV(TLVUniqueID) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
