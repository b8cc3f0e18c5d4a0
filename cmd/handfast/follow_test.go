package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// Row C4: without --listen, handfast listens where the workers do, on all their addresses and on no
// others; through a reload, a crash and an upgrade.
func TestFollow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		listens, reaches, not string // of ports 1 and 2
	}{
		"localhost":           {"127.0.0.1/1", "127.0.0.1/1", "127.0.0.2/1 ::1/1"},
		"IPv6 localhost":      {"::1/1", "::1/1", "127.0.0.1/1"},
		"IPv4":                {"0.0.0.0/1", "127.0.0.1/1 127.0.0.2/1", "::1/1"},
		"all":                 {"::/1", "127.0.0.1/1 ::1/1", ""},
		"two ports":           {"127.0.0.1/1 0.0.0.0/2", "127.0.0.1/1 127.0.0.2/2", "127.0.0.2/1"},
		"each family":         {"0.0.0.0/1 only::/1", "127.0.0.1/1 ::1/1", ""},
		"each family, turned": {"only::/1 0.0.0.0/1", "127.0.0.1/1 ::1/1", ""},
		"IPv6 only":           {"only::/1", "::1/1", "127.0.0.1/1"},
		"both localhosts":     {"127.0.0.1/1 ::1/1", "127.0.0.1/1 ::1/1", "127.0.0.2/1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ports := []string{"0", portOf(t, trial.FreeAddress(t)), portOf(t, trial.FreeAddress(t))}
			at := func(text string) (all []string) {
				for word := range strings.FieldsSeq(text) {
					host, port, _ := strings.Cut(word, "/")
					all = append(all, host+"/"+ports[port[0]-'0'])
				}
				return all
			}
			b := runs(t, slices.Concat([]string{"--workers", "2", "--probation", "0s", "--"}, pythonServes, at(test.listens))...)
			b.awaitCount("worker ready", 2)
			look := func() {
				t.Helper()
				for _, text := range []string{test.reaches, test.not} {
					for _, word := range at(text) {
						host, port, _ := strings.Cut(word, "/")
						reaches(t, host, port, text == test.reaches)
					}
				}
			}
			look()
			b.awaitCount("listening", len(at(test.listens)))
			if n := len(b.log("listening")); n != len(at(test.listens)) {
				t.Errorf("it listens on %d addresses", n)
			}
			if name != "two ports" {
				return
			}
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			look()
			b.signal(unix.SIGHUP)
			b.await("upgraded")
			look()
			kill(t, b.worker(0))
			b.awaitCount("worker ready", 5)
			look()
		})
	}
}

// Row C4: check says so.
func TestFollowCheck(t *testing.T) {
	t.Parallel()
	var out fdtest.Log
	run(t.Context(), []string{"handfast", "check", "--", "python3", "-m", "http.server", "8000"}, &out, &out)
	if !strings.Contains(out.String(), "run listens where the first worker does") || strings.Contains(out.String(), "--listen :8080") {
		t.Error(out.String())
	}
}

// Row C4: what a worker of another user may not bind, the master does not bind for it.
func TestFollowRights(t *testing.T) {
	t.Parallel()
	wrapper := network(t, "sysctl -qw net.ipv4.ip_unprivileged_port_start=1024;")
	for _, user := range []string{"nobody", "root"} {
		b := runsUnder(t, wrapper, slices.Concat([]string{"--workers", "1", "--user", user, "--"}, pythonServes, []string{"127.0.0.1/81"})...)
		if user == "root" {
			b.await("worker ready")
		} else {
			b.says("cannot listen where a worker does", "say --listen", "permission denied")
		}
	}
}

// Row C4: where the address is somebody else's, the log says whose.
func TestFollowInUse(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	b := runs(t, slices.Concat([]string{"--workers", "1", "--"}, pythonServes, []string{"127.0.0.1/" + port})...)
	b.says("cannot listen where a worker does", ln.Addr().String(), "address already in use", fmt.Sprint("pid ", unix.Getpid()))
}
