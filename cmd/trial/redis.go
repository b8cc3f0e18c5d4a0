package trial

import (
	"net"
	"strings"
	"testing"
)

// Redis runs a Redis server, which keeps nothing, and returns its address.
func Redis(t *testing.T) (address string) {
	t.Helper()
	server := Need(t, "redis-server", "redis-server")
	address = FreeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	p := Start(t, server, "--bind", host, "--port", port, "--save", "", "--dir", t.TempDir())
	p.Await("Redis", 1, func(line string) bool { return strings.Contains(line, "Ready to accept connections") })
	return address
}
