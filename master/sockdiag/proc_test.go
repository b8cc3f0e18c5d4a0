package sockdiag

import (
	"net/netip"
	"testing"
)

func TestParseHex(t *testing.T) {
	if !isLittleEndian() {
		t.Skip("written for little-endian machines")
	}
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000001000000:0016": "[::1]:22",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
		"0000000000000000FFFF00000100007F:0001": "127.0.0.1:1",
		"00000000000000000000000000000000:0050": "[::]:80",
		"B80D0120000000000000000001000000:FFFF": "[2001:db8::1]:65535",
		"0100007F":                              "",
		"0100007:1F90":                          "",
		"01000:1F90":                            "",
		"010000:50":                             "",
		"0100007F:1F900":                        "",
		"":                                      "",
	} {
		got, ok := parseHex(text)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v, %v; want %q", text, got, ok, want)
		}
	}
}

func isLittleEndian() bool {
	ap, ok := parseHex("0100007F:0000")
	return ok && ap.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
