package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// onSocket starts a balancer that listens on a Unix socket alone, and returns its path.
func onSocket(t *testing.T, slots int, flags ...string) (b *instance, path string) {
	t.Helper()
	path = filepath.Join(filepath.Dir(socketPath(t)), "app.sock")
	return start(t, slots, options{flags: append([]string{"--listen", "unix:" + path + "?mode=0666", "--behind-proxy"}, flags...)}), path
}

// TestSocketBehindProxies: by a Unix socket proxies have their pools, and each request is served in its own client's slot while workers
// are reloaded and killed and the program is replaced; and by the port beside it others are who they are.
func TestSocketBehindProxies(t *testing.T) {
	t.Parallel()
	const slots = 3
	for name, scheme := range map[string]string{"nginx": "unix:", "HAProxy": "unix@", "Caddy": "unix/"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := poolings[name]
			proxy.Need(t)
			b, path := onSocket(t, slots, "--listen", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1")
			front := proxy.Run(t, fmt.Sprintf(proxy.conf, scheme+path))
			n, pause := pooledRequests(t, 300)
			b.tryHandBack(&pooledLoad{t: t, address: front.Address, slots: slots, pause: pause}, n)
			b.tryStranger(path)
		})
	}
}

// tryStranger: who comes by the port is no trusted proxy, whatever it says.
func (b *instance) tryStranger(path string) {
	t := b.t
	t.Helper()
	const slots = 3
	at := b.status().Addresses
	if len(at) != 2 || at[1] != "unix:"+path {
		t.Fatalf("addresses %q", at)
	}
	stranger := netip.MustParseAddr("127.0.0.77")
	conn, err := dialTo(stranger, at[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 10 {
		if a := askOver(t, conn, pooledRequest(proxied(i), "")); a.slot != slotOf(stranger, slots) {
			t.Errorf("%+v, want the slot of the peer, %d", a, slotOf(stranger, slots))
		}
	}
}

// askOver makes a request over a connection that stays open.
func askOver(t *testing.T, conn net.Conn, request string) answer {
	t.Helper()
	a, err := (&keptConn{Conn: conn, lines: bufio.NewReader(conn)}).ask("", request)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestSocketFile: the file has the rights that were asked for, a second master leaves it alone, one that was killed leaves it to the
// next one, and one that stops removes it, but not what another has put there.
func TestSocketFile(t *testing.T) {
	t.Parallel()
	b, path := onSocket(t, 1)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o666 {
		t.Fatalf("%v, %v", info, err)
	}
	ask := func() answer {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return askOver(t, conn, pooledRequest(netip.MustParseAddr("203.0.113.1"), ""))
	}
	ask()

	second := trial.Build(t, "github.com/handfast/handfast/cmd/handfast")
	flags := []string{"--admin", "off", "--listen", "unix:" + path, "--behind-proxy", "--worker-link", "native", "--workers", "1", "--", trial.Build(t, testWorker), "http"}
	out, err := exec.Command(second, append([]string{"run"}, flags...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("is in use by pid %d", b.cmd.Process.Pid)) {
		t.Errorf("a second one: %v\n%s", err, out)
	}
	ask()

	// Killed: workers end with the mailbox, and the file stays.
	b.signal(unix.SIGKILL)
	<-b.exited
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("after a kill: %v", err)
	}
	next := start(t, 1, options{flags: []string{"--listen", "unix:" + path, "--behind-proxy"}})
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("%v, %v", info, err)
	}
	ask()
	next.upgrades(1)
	ask()
	next.signal(unix.SIGTERM)
	<-next.exited
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after the end: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) > 0 {
		t.Errorf("it leaves %v, %v", entries, err)
	}
}

// TestParseSocket: what an address says of a Unix socket, and what is wrong with it.
func TestParseSocket(t *testing.T) {
	for address, want := range map[string]string{
		"unix:/run/app.sock":                     "/run/app.sock 660 0",
		"unix:/run/app.sock?mode=0600":           "/run/app.sock 600 0",
		"unix:/run/app.sock?group=12&mode=666":   "/run/app.sock 666 12",
		"unix:app.sock":                          "want unix:/PATH",
		"unix:":                                  "want unix:/PATH",
		"unix:/run/":                             "want unix:/PATH",
		"unix:@app":                              "abstract",
		"unix:/run/a?mode=9":                     "octal",
		"unix:/run/a?mode=01777":                 "octal",
		"unix:/run/a?mod=0600":                   "no such setting",
		"unix:/run/a?group=no-such-group-at-all": "unknown group",
		"unix:/" + strings.Repeat("x", 200):      "bytes",
	} {
		path, o, err := parseSocket(address)
		got := fmt.Sprintf("%s %o %d", path, o.Mode, o.Group)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	if err := listenMistake("/run/app.sock"); err == nil || !strings.Contains(err.Error(), "did you mean unix:/run/app.sock") {
		t.Errorf("a path alone: %v", err)
	}
}

// TestSocketPlan: nothing but the master's route and the native link serve a Unix socket, and only where clients are told apart by
// something else than their address.
func TestSocketPlan(t *testing.T) {
	native, other := facts{mailbox: true}, facts{}
	on := []string{":80", "unix:/run/app.sock"}
	for _, tt := range []struct {
		asked intent
		facts facts
		want  string // of an error, or none
	}{
		{intent{listen: on, header: true}, native, ""},
		{intent{listen: on, proxyProtocol: true}, native, ""},
		{intent{listen: on, brought: true}, native, ""},
		{intent{listen: on}, native, "--behind-proxy"},
		{intent{listen: on, header: true}, other, "--worker-link any do not take connections of a Unix socket"},
		{intent{listen: on, header: true, link: linkNode}, native, "--worker-link node do not"},
		{intent{listen: on, route: routeKernel}, native, "--route kernel"},
		{intent{header: true}, facts{mailbox: true, passed: true, passedSocket: "/run/x"}, ""},
		{intent{}, facts{mailbox: true, passed: true, passedSocket: "/run/x"}, "the Unix socket /run/x of the service manager"},
	} {
		d, err := tt.asked.decide(tt.facts)
		switch {
		case tt.want == "" && (err != nil || d.route != routeMaster):
			t.Errorf("%+v: %v, %v", tt.asked, d.route, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: %v, want %s", tt.asked, err, tt.want)
		}
	}
}
