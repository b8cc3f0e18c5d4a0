package worker

import (
	"encoding/binary"
	"iter"
)

// Types of TLVs, from https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2.1 ff., and those
// of cloud providers.
const (
	TLVALPN      = 0x01 // what TLS has negotiated
	TLVAuthority = 0x02 // the name of the server that the client asked for (SNI)
	TLVUniqueID  = 0x05 // of the connection
	TLVTLS       = 0x20 // five bytes (which of TLS there was, and whether the client's certificate is good), then TLVs: see TLVs
	TLVGCP       = 0xe0 // Google's Private Service Connect: the connection's id, 8 bytes
	TLVAWS       = 0xea // first byte 1: the rest is the id of the VPC endpoint
	TLVAzure     = 0xee // first byte 1: the rest is the private endpoint's link id, 4 bytes, little-endian
)

// ProxyTLVs are what a trusted proxy has said, by version 2 of the PROXY protocol, beside addresses, in its order. It is
// none if that was more than fdpass.MaxDetails bytes, or if the connection is not Proxied. The values are the caller's.
func (c *Conn) ProxyTLVs() iter.Seq2[byte, []byte] { return TLVs([]byte(c.details)) }

// ProxyTLV returns the first of these of a type, nil if there is none.
func (c *Conn) ProxyTLV(kind byte) []byte {
	for k, value := range c.ProxyTLVs() {
		if k == kind {
			return value
		}
	}
	return nil
}

// TLVs takes a list of types and values apart: each is one byte, the length in two bytes, and the value. It ends where
// that is malformed. The values are parts of b. Those in TLVTLS begin at its sixth byte.
func TLVs(b []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for rest := b; len(rest) >= 3; {
			kind, n := rest[0], int(binary.BigEndian.Uint16(rest[1:]))
			if rest = rest[3:]; n > len(rest) {
				return
			}
			if !yield(kind, rest[:n:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}
