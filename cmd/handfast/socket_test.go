package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// onSocket starts a balancer that listens on a Unix socket alone, and returns its path.
func onSocket(t *testing.T, slots int, flags ...string) (b *instance, path string) {
	t.Helper()
	dir := filepath.Dir(socketPath(t))
	noError(t, os.Chmod(dir, 0o755)) // Apache's children are of another user
	path = filepath.Join(dir, "app.sock")
	return start(t, slots, options{flags: append([]string{"--listen", "unix:" + path + "?mode=0666", "--behind-proxy"}, flags...)}), path
}

// TestSocketBehindProxies: by a Unix socket proxies have their pools, and each request is served in its own client's slot while workers
// are reloaded and killed and the program is replaced; and by the port beside it others are who they are.
func TestSocketBehindProxies(t *testing.T) {
	t.Parallel()
	const slots = 3
	for name, address := range map[string]string{"nginx": "unix:%s", "HAProxy": "unix@%s", "Caddy": "unix/%s", "Apache": "unix:%s|http://app/"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := poolings[name]
			proxy.Need(t)
			b, path := onSocket(t, slots, "--listen", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1")
			conf := strings.Replace(proxy.conf, "http://%s/", "%s", 1) // Apache's, which is a part of the address
			front := proxy.Run(t, fmt.Sprintf(conf, fmt.Sprintf(address, path)))
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

// overSocket sends text to a worker that plays "raw", by a Unix socket, and returns what comes back.
func overSocket(t *testing.T, path, text string) string {
	t.Helper()
	conn, err := net.Dial("unix", path)
	noError(t, err)
	defer conn.Close()
	noError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, text)
	noError(t, err)
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, unix.ECONNRESET) { // since not all was read
		t.Fatal(err)
	}
	return string(got)
}

// TestSocketProxyProtocol: who connects to a Unix socket is believed when it says who the client is, by either version, and must say it.
func TestSocketProxyProtocol(t *testing.T) {
	t.Parallel()
	const slots = 4
	path := filepath.Join(filepath.Dir(socketPath(t)), "app.sock")
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--listen", "unix:" + path, "--proxy-protocol", "--trusted-proxies", "192.0.2.1"}})
	for i := range 10 {
		client := proxied(i)
		for version := byte(1); version <= 2; version++ {
			m := answerLine.FindStringSubmatch(overSocket(t, path, proxyHeader(t, version, client)+"then this"))
			if m == nil || m[1] != fmt.Sprint(slotOf(client, slots)) || m[4] != client.String() {
				t.Errorf("version %d of %v: %q, want slot %d", version, client, m, slotOf(client, slots))
			}
		}
	}
	if got := overSocket(t, path, "GET / HTTP/1.1\r\n\r\n"); got != "" {
		t.Errorf("without a header: %q", got)
	}
	if refused := b.await("connection refused"); !strings.Contains(refused.text, "PROXY protocol header") || !strings.Contains(refused.text, `"peer":"unix"`) {
		t.Errorf("the log does not say why: %s", refused.text)
	}
}

// TestSocketInherited: a Unix socket that a service manager has made is served, also after an upgrade, and stays where it is.
func TestSocketInherited(t *testing.T) {
	t.Parallel()
	const slots = 3
	path := filepath.Join(filepath.Dir(socketPath(t)), "app.sock")
	ln, err := net.Listen("unix", path)
	noError(t, err)
	defer ln.Close()
	file, err := ln.(*net.UnixListener).File()
	noError(t, err)
	defer file.Close()
	b := start(t, slots, options{flags: []string{"--behind-proxy"}, change: func(cmd *exec.Cmd) {
		cmd.Args = withoutListen(cmd.Args)
		viaShell(cmd, `export LISTEN_PID=$$ LISTEN_FDS=1`)
		cmd.ExtraFiles = []*os.File{file}
	}})
	ask := func() {
		t.Helper()
		conn, err := net.Dial("unix", path)
		noError(t, err)
		defer conn.Close()
		kept := &keptConn{Conn: conn, lines: bufio.NewReader(conn)}
		for i := range 20 {
			if a, err := kept.ask("", pooledRequest(proxied(i), "")); err != nil || a.slot != slotOf(proxied(i), slots) {
				t.Fatalf("%v: %+v, %v, want slot %d", proxied(i), a, err, slotOf(proxied(i), slots))
			}
		}
	}
	ask()
	if at := b.status().Addresses; len(at) != 1 || at[0] != "unix:"+path {
		t.Errorf("addresses %q", at)
	}
	b.upgrades(1)
	ask()
	b.signal(unix.SIGTERM)
	<-b.exited
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("after the end: %v, %v", info, err)
	}
}
