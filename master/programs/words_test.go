package programs

import (
	"strings"
	"testing"
)

// TestAddressInUse: as programs say it.
// Rows C1 and D13.
func TestAddressInUse(t *testing.T) {
	for _, test := range []struct {
		words string
		port  uint16
		yes   bool
	}{
		{"Error: listen EADDRINUSE: address already in use :::3000\n    at Server.setupListenHandle (node:net:1817:16)", 3000, true},
		{"    at x (node:net:1817:16) {\n  code: 'EADDRINUSE',\n  errno: -98,\n  port: 3000\n}", 3000, true},
		{"Error: loading initial config: loading new config: http app module: start: listen udp :25471: bind: address already in use", 25471, true},
		{"2026/11/26 19:32:08 listen tcp 127.0.0.1:2019: bind: address already in use", 2019, true},
		{"OSError: [Errno 98] Address already in use", 0, true},
		{"[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use", 8000, true},
		{"nginx: [emerg] bind() to 0.0.0.0:8080 failed (98: Address already in use)", 8080, true},
		{"java.net.BindException: Address already in use", 0, true},
		{"[ERROR] Connection in use: ('127.0.0.1', 8000)", 0, false}, // gunicorn tries again
		{"TypeError: 98", 0, false},
		{"", 0, false},
	} {
		if port, yes := AddressInUse(test.words); port != test.port || yes != test.yes {
			t.Errorf("%q: %d, %v", test.words, port, yes)
		}
	}
	caddy := Resolve([]string{"nice", "caddy", "run"})
	for network, want := range map[string]string{"udp": "protocols h1 h2", "tcp": "admin off"} {
		if got := caddy.OwnAddress(network, 2019); !strings.Contains(got, want) {
			t.Errorf("%s: %s", network, got)
		}
	}
	if got := caddy.OwnAddress("tcp", 9000); !strings.Contains(got, "{slot}") {
		t.Error(got)
	}
}
