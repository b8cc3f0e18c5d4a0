package servers_test

import (
	"os"
	"slices"
	"testing"
)

// sample are one that waits in select with a process of its own for its requests, one that waits in accept, one that
// waits for changes (EPOLLET), and one whose processes share a socket.
var sample = []string{"gunicorn", "php-fpm", "go", "nginx"}

// TestInjected: what is promised of servers holds where the master gives clients to slots, too, and each call of accept
// is answered with a connection.
func TestInjected(t *testing.T) {
	all := servers
	if os.Getuid() == 0 { // some of the others start only as root
		all = slices.Concat(servers, others)
	}
	for _, s := range all {
		if s.link != "any" || !everything && !slices.Contains(sample, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			few := *s
			few.light, few.link = true, "any, by accept injection"
			st := few.start(t, nil, "--worker-link", "any", "--route", "master")
			st.sticky(1, 1)
			st.kill()
			st.reload()
			st.end()
		})
	}
}
