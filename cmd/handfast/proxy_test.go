package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// proxied is the i-th client that a proxy speaks for.
func proxied(i int) netip.Addr {
	if i%2 == 1 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", i))
	}
	return netip.AddrFrom4([4]byte{203, 0, byte(113 + i>>8), byte(i)})
}

func slotOf(client netip.Addr, slots int) int { return hash.DefaultConfig().Key(client).Slot(slots) }

// forwardedHead is a request as a proxy sends it, with header lines of its own.
func forwardedHead(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: test\r\n" + strings.Join(append(lines, "Connection: close"), "\r\n") + "\r\n\r\n"
}

func forwardedFor(client netip.Addr) string {
	return forwardedHead("X-Forwarded-For: " + client.String())
}

// send writes text on a new connection, in as many segments as there are parts: the
// others when the balancer has accepted the connection with the first one. It is closed when
// the test ends: a client that was refused keeps the balancer until it closes.
func (b *instance) send(from netip.Addr, parts ...string) *net.TCPConn {
	b.t.Helper()
	if len(parts) > 1 {
		conn := b.park(from, parts[0])
		if _, err := io.WriteString(conn, strings.Join(parts[1:], "")); err != nil {
			b.t.Fatal(err)
		}
		return conn
	}
	conn, err := b.dial(from)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, strings.Join(parts, "")); err != nil {
		b.t.Fatal(err)
	}
	return conn
}

// park sends the first part of a head and waits until the balancer has the connection.
func (b *instance) park(from netip.Addr, part string) *net.TCPConn {
	b.t.Helper()
	before := b.sockets()
	conn := b.send(from, part)
	if !eventually(func() bool {
		for socket := range b.sockets() {
			if !before[socket] {
				return true
			}
		}
		return false
	}) {
		b.t.Fatalf("%q: the connection was not parked", part)
	}
	return conn
}

// sockets returns what tells the balancer's open sockets apart.
func (b *instance) sockets() map[string]bool {
	open := map[string]bool{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.cmd.Process.Pid))
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "socket:") {
			open[to] = true
		}
	}
	return open
}

// ask sends text and returns the worker's answer.
func (b *instance) ask(from netip.Addr, parts ...string) answer {
	b.t.Helper()
	conn := b.send(from, parts...)
	defer conn.Close()
	a, err := response(conn)
	if err != nil || a.status != http.StatusOK {
		b.t.Fatalf("%q: %+v, %v", parts, a, err)
	}
	return a
}

var proxyAt = source(0) // a trusted proxy connects from here

// TestBehindProxy: clients are told apart by what the proxy says, keep their slots
// over reloads, and the worker's peer stays the proxy.
func TestBehindProxy(t *testing.T) {
	t.Parallel()
	const slots, clients = 4, 40
	b := start(t, slots, options{flags: []string{"--behind-proxy"}})
	for generation := 1; generation <= 2; generation++ {
		used := map[int]bool{}
		for i := range clients {
			a := b.ask(proxyAt, forwardedFor(proxied(i)))
			if a.slot != slotOf(proxied(i), slots) || a.generation != generation || a.client != proxyAt.String() {
				t.Errorf("client %v: %+v, want slot %d", proxied(i), a, slotOf(proxied(i), slots))
			}
			used[a.slot] = true
		}
		if len(used) != slots {
			t.Errorf("%d of %d slots are used", len(used), slots)
		}
		if generation == 1 {
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
		}
	}
	if a := b.ask(proxyAt, forwardedHead()); a.slot != slotOf(proxyAt, slots) {
		t.Errorf("without the header: slot %d, want that of the peer", a.slot)
	}
}

// TestTrustedHops: proxies in between are counted and need not be known, and a peer that is not trusted is not believed.
func TestTrustedHops(t *testing.T) {
	t.Parallel()
	const slots = 16
	client, edge := netip.MustParseAddr("2001:db8:17::5"), netip.MustParseAddr("198.51.100.9")
	untrusted := source(9)
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--trusted-hops", "2", "--trusted-proxies", proxyAt.String()}})
	line := fmt.Sprintf("X-Forwarded-For: 203.0.113.66, %v, %v", client, edge)
	if a := b.ask(proxyAt, forwardedHead(line)); a.slot != slotOf(client, slots) {
		t.Errorf("%s: slot %d, want %d", line, a.slot, slotOf(client, slots))
	}
	if a := b.ask(proxyAt, forwardedFor(client)); a.slot != slotOf(client, slots) {
		t.Errorf("one entry: slot %d, want %d", a.slot, slotOf(client, slots))
	}
	if a := b.ask(untrusted, forwardedHead(line)); a.slot != slotOf(untrusted, slots) {
		t.Errorf("a peer that is not trusted: slot %d, want %d", a.slot, slotOf(untrusted, slots))
	}
}

// TestProxyHeaders: other headers, other grammars.
func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	const slots = 8 // all addresses here are of different ones
	client := netip.MustParseAddr("2001:db8:17::5")
	for _, c := range []struct{ header, line string }{
		{"X-Real-IP", "X-Real-IP: 2001:db8:17::5"},
		{"cf-connecting-ip", "CF-Connecting-IP: 2001:db8:17::5"},
		{"Forwarded", `Forwarded: for=unknown, For="[2001:db8:17::5]:4711";proto=https;by=10.0.0.1, for=192.168.1.1`},
	} {
		b := start(t, slots, options{flags: []string{"--behind-proxy", "--proxy-header", c.header}})
		if a := b.ask(proxyAt, forwardedHead("X-Forwarded-For: 203.0.113.9", c.line)); a.slot != slotOf(client, slots) {
			t.Errorf("%s: slot %d, want %d", c.line, a.slot, slotOf(client, slots))
		}
	}
}

// TestTrust: a peer that is no trusted proxy is its own address, whatever it claims.
func TestTrust(t *testing.T) {
	t.Parallel()
	const slots = 4
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--trusted-proxies", proxyAt.String() + ",198.51.100.0/24"}})
	client, liar := proxied(2), source(7)
	if a := b.ask(proxyAt, forwardedHead("X-Forwarded-For: 203.0.113.66, "+client.String()+", 198.51.100.7")); a.slot != slotOf(client, slots) {
		t.Errorf("slot %d, want that of %v", a.slot, client)
	}
	if a := b.ask(liar, forwardedFor(client)); a.slot != slotOf(liar, slots) {
		t.Errorf("slot %d of who is not trusted, want that of its own address", a.slot)
	}
	// Its head is not even waited for.
	b = start(t, slots, options{worker: []string{"raw"}, flags: []string{"--behind-proxy", "--trusted-proxies", proxyAt.String(), "--header-timeout", "10m"}})
	if a := b.raw(liar, "GET / HTTP/1.1\r\n"); a.slot != slotOf(liar, slots) {
		t.Errorf("slot %d, want that of its own address", a.slot)
	}
}

// TestTrustedProxiesFile: a list of trusted proxies is a file, which an upgrade reads again. A file with a mistake stops an
// upgrade, and the error names its line.
func TestTrustedProxiesFile(t *testing.T) {
	t.Parallel()
	const slots = 8
	file := filepath.Join(t.TempDir(), "proxies")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# Nobody of ours.\n\n192.0.2.0/24 # documentation\n")
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--trusted-proxies", "link-local, @" + file}})
	client := proxied(2)
	if a := b.ask(proxyAt, forwardedFor(client)); a.slot != slotOf(proxyAt, slots) {
		t.Errorf("slot %d of who is in no line, want that of its own address", a.slot)
	}
	write("192.0.2.0/24\n" + proxyAt.String() + "\n10.0.0.0/33\n")
	if out := b.begin("upgrade").ends(exitFailure); !strings.Contains(out, file+":3: ") {
		t.Errorf("an upgrade with a mistake in the file does not name its line: %s", out)
	}
	write("192.0.2.0/24\n" + proxyAt.String())
	b.tell("upgrade")
	if a := b.ask(proxyAt, forwardedFor(client)); a.slot != slotOf(client, slots) {
		t.Errorf("slot %d of who is in a line since the upgrade, want that of its client", a.slot)
	}
}

// TestTrustedProxiesFileErrors: each names the file, and the line if there is one.
func TestTrustedProxiesFileErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, says := range map[string]string{
		"10.0.0.0/8\nproxy.example\n":                `/list:2: "proxy.example" is no address`,
		"@" + dir + "/list":                          `/list:1: "@`, // no file names another
		"# only\n":                                   "name at least one",
		strings.Repeat("10.0.0.0/8\n", maxTrusted+1): "2001 ranges, want at most 2000",
		strings.Repeat("#", maxConfigFile+1):         "/list: larger than",
	} {
		if err := os.WriteFile(dir+"/list", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out fdtest.Log
		if status := run(t.Context(), []string{"handfast", "check", "--behind-proxy", "--trusted-proxies", "@" + dir + "/list", "--", "true"}, &out, &out); status != exitUsage || !strings.Contains(out.String(), says) {
			t.Errorf("%.40q: exit status %d, does not say %s: %s", text, status, says, &out)
		}
	}
	var out fdtest.Log
	if status := run(t.Context(), []string{"handfast", "check", "--behind-proxy", "--trusted-proxies", "@" + dir + "/none", "--", "true"}, &out, &out); status != exitUsage || !strings.Contains(out.String(), dir+"/none: no such file") {
		t.Errorf("no file: exit status %d, %s", status, &out)
	}
}

// TestKeyHeader: the key is the header's value; without one it is the client's address.
func TestKeyHeader(t *testing.T) {
	t.Parallel()
	const slots = 16
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--key", "header:X-Session"}})
	for i := range 20 {
		session := fmt.Sprintf("session/%d;=", i)
		var out fdtest.Log
		run(t.Context(), []string{"handfast", "slot", "-n", strconv.Itoa(slots), "--key", "header:X-Session", session}, &out, &out)
		for client := range 3 {
			a := b.ask(proxyAt, forwardedHead("X-Forwarded-For: "+proxied(client).String(), "x-session:  "+session+" "))
			if strconv.Itoa(a.slot) != strings.TrimSpace(out.String()) {
				t.Errorf("session %q is in slot %d, `handfast slot` says %s", session, a.slot, &out)
			}
		}
	}
	if a := b.ask(proxyAt, forwardedFor(proxied(1))); a.slot != slotOf(proxied(1), slots) {
		t.Errorf("without a session: slot %d, want %d", a.slot, slotOf(proxied(1), slots))
	}
}

// TestHiddenBehindProxy: most connections come from one address, and the operator is told what to do if it is a proxy's. Status and
// metrics go on to say so.
func TestHiddenBehindProxy(t *testing.T) {
	t.Parallel()
	const message, most = "one client has most of the connections", 3000 // two windows of 1,000 and what a batch adds
	b := start(t, 2, options{})
	for i := 0; i < most && (i%100 > 0 || len(b.log(message)) == 0); i++ {
		from := proxyAt
		if i%4 == 0 {
			from = source(1 + i)
		}
		conn, err := b.dial(from)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetLinger(0) // its port is free at once
		conn.Close()
	}
	b.says(message, `"@level":"warn"`, `"client":"`+proxyAt.String()+`"`, `"share":0.7`, `"connections":1`, "--behind-proxy or --proxy-protocol")
	if l := b.status().Largest; l == nil || l.Client != proxyAt.String() || l.Share < 0.7 || l.Share > 0.8 || l.Of < 1000 {
		t.Errorf("the status has %+v", l)
	}
	if text, want := b.tell("status"), fmt.Sprintf("\nclient %v has 7", proxyAt); !strings.Contains(text, want) {
		t.Errorf("%s does not say %s", text, want)
	}
	if text := b.metrics(); !strings.Contains(text, "\nhandfast_largest_client_share 0.7") {
		t.Error(text)
	}
}

// TestClientsInTrustedNetworks: who is trusted by default, and is a proxy's client, can say to be somebody else. The operator is
// told once.
func TestClientsInTrustedNetworks(t *testing.T) {
	t.Parallel()
	const slots, message = 16, "a client has an address that is trusted as a proxy's"
	intranet, chosen := netip.MustParseAddr("192.168.7.7"), netip.MustParseAddr("203.0.113.66")
	line := fmt.Sprintf("X-Forwarded-For: %v, %v", chosen, intranet)
	b := start(t, slots, options{flags: []string{"--behind-proxy"}})
	for range 3 {
		b.ask(proxyAt, forwardedFor(intranet))
		if a := b.ask(proxyAt, forwardedHead(line)); a.slot != slotOf(chosen, slots) {
			t.Errorf("slot %d, want %d, which the client chooses", a.slot, slotOf(chosen, slots))
		}
	}
	b.says(message, `"@level":"warn"`, `"client":"`+intranet.String()+`"`, "--trusted-proxies")
	if n := b.count(message); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	b = start(t, slots, options{flags: []string{"--behind-proxy", "--trusted-proxies", proxyAt.String()}})
	if a := b.ask(proxyAt, forwardedHead(line)); a.slot != slotOf(intranet, slots) {
		t.Errorf("slot %d, want %d: what the client adds does not count", a.slot, slotOf(intranet, slots))
	}
	if n := b.count(message); n != 0 {
		t.Error("the remedy is none")
	}
}

// TestTakenBackBehindProxy: what a dead worker did not take from its mailbox goes to its
// successor, not to the slot of the proxy: its head is peeked again, and a PROXY header
// that is gone already is not asked for again.
func TestTakenBackBehindProxy(t *testing.T) {
	t.Parallel()
	const slots = 2
	for _, c := range []struct {
		flag string
		text func(client netip.Addr) string
	}{
		{"--behind-proxy", forwardedFor},
		{"--proxy-protocol", func(client netip.Addr) string { return proxyHeader(t, 2, client) + forwardedHead() }},
		{"--proxy-protocol", func(client netip.Addr) string {
			if client == proxied(0) { // the proxy's own connection
				return "PROXY UNKNOWN\r\n" + forwardedHead()
			}
			return proxyHeader(t, 1, client) + forwardedHead()
		}},
	} {
		b := start(t, slots, options{flags: []string{c.flag}})
		client := proxied(0)
		victim := b.ask(proxyAt, c.text(client))
		other := proxied(1)
		for i := 2; slotOf(other, slots) == victim.slot; i++ {
			other = proxied(i)
		}
		freeze(t, victim.pid)
		var waiting []*net.TCPConn
		for range 100 {
			waiting = append(waiting, b.send(proxyAt, c.text(client)))
		}
		files := b.files()
		b.ask(proxyAt, c.text(other)) // accepted behind them
		unix.Kill(victim.pid, unix.SIGKILL)
		for i, conn := range waiting {
			if a, err := response(conn); err != nil || a.slot != victim.slot || a.pid == victim.pid || a.client != victim.client {
				t.Fatalf("%s: client %d: %+v, %v, want the successor in slot %d", c.flag, i, a, err, victim.slot)
			}
			conn.Close()
		}
		if !eventually(func() bool { return b.files() <= files }) {
			t.Errorf("%d files are open, before %d", b.files(), files)
		}
	}
}

// TestPooledConnection: without hand-back, a proxy that sends requests of two clients over one connection
// is told to close it, and the operator once.
func TestPooledConnection(t *testing.T) {
	t.Parallel()
	const said = "sends requests of several clients over one connection"
	b := start(t, 2, options{flags: []string{"--behind-proxy", "--hand-back=false"}})
	for range 3 {
		conn := b.send(proxyAt)
		defer conn.Close()
		reader := bufio.NewReader(conn)
		for i, want := range []struct {
			client netip.Addr
			close  bool
		}{{proxied(1), false}, {proxied(1), false}, {proxied(2), true}} {
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\n\r\n", want.client)
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			if resp.Close != want.close {
				t.Errorf("request %d: Connection: close is %v, want %v", i, resp.Close, want.close)
			}
		}
		if rest, err := io.ReadAll(reader); len(rest) > 0 || err != nil {
			t.Errorf("%q, %v behind the last answer", rest, err)
		}
	}
	if !eventually(func() bool { return b.count(said) > 0 }) {
		t.Error("nobody is told")
	}
	if n := b.count(said); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// count returns how many lines contain text, of handfast and of its workers.
func (b *instance) count(text string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if strings.Contains(l.text, text) {
			n++
		}
	}
	return n
}
