package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
)

// proxied is the i-th client that a proxy speaks for.
func proxied(i int) netip.Addr {
	if i%2 == 1 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", i))
	}
	return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
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
// others when the balancer has accepted the connection with the first one.
func (b *balancer) send(from netip.Addr, parts ...string) *net.TCPConn {
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
	if _, err := io.WriteString(conn, strings.Join(parts, "")); err != nil {
		b.t.Fatal(err)
	}
	return conn
}

// park sends the first part of a head and waits until the balancer has the connection.
func (b *balancer) park(from netip.Addr, part string) *net.TCPConn {
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
func (b *balancer) sockets() map[string]bool {
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
func (b *balancer) ask(from netip.Addr, parts ...string) answer {
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

// TestProxyHeaders: other headers, other grammars.
func TestProxyHeaders(t *testing.T) {
	const slots = 16
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

// TestTrust: who is no trusted proxy is its own address, whatever it claims.
func TestTrust(t *testing.T) {
	const slots = 16
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--trusted-proxies", proxyAt.String() + ",198.51.100.0/24"}})
	client, liar := proxied(2), source(7)
	if a := b.ask(proxyAt, forwardedHead("X-Forwarded-For: 203.0.113.66, "+client.String()+", 198.51.100.7")); a.slot != slotOf(client, slots) {
		t.Errorf("slot %d, want that of %v", a.slot, client)
	}
	if a := b.ask(liar, forwardedFor(client)); a.slot != slotOf(liar, slots) {
		t.Errorf("slot %d of who is not trusted, want that of its own address", a.slot)
	}
	// It is not even waited for.
	if a := b.ask(liar, "GET / HTTP/1.1\r\n", "Host: test\r\nConnection: close\r\n\r\n"); a.slot != slotOf(liar, slots) {
		t.Errorf("slot %d, want that of its own address", a.slot)
	}
}

// TestKeyHeader: the key is the header's value; without one it is the client's address.
func TestKeyHeader(t *testing.T) {
	const slots = 16
	b := start(t, slots, options{flags: []string{"--behind-proxy", "--key", "header:X-Session"}})
	for i := range 20 {
		session := fmt.Sprintf("session/%d;=", i)
		var out bytes.Buffer
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

// TestProxyProtocol: the header is consumed, what follows is left, and the worker's
// peer is the client.
func TestProxyProtocol(t *testing.T) {
	const slots = 16
	untrusted := source(9)
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--proxy-protocol", "--trusted-proxies", proxyAt.String()}})
	for i := range 20 {
		client := proxied(i)
		for version := byte(1); version <= 2; version++ {
			header := proxyHeader(t, version, client)
			for cut := range []int{0, 1, 8, len(header) - 1, len(header)} {
				a := b.raw(proxyAt, header[:cut], header[cut:]+"then this")
				if a.slot != slotOf(client, slots) || a.client != client.String() || a.body != "then this" {
					t.Errorf("version %d, cut at %d: %+v, want slot %d", version, cut, a, slotOf(client, slots))
				}
			}
		}
	}
	for _, own := range []string{"PROXY UNKNOWN\r\n", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"} {
		if a := b.raw(proxyAt, own+"then this"); a.slot != slotOf(proxyAt, slots) || a.client != proxyAt.String() || a.body != "then this" {
			t.Errorf("%q: %+v", own, a)
		}
	}
	if a := b.raw(untrusted, "PROX, or not"); a.slot != slotOf(untrusted, slots) || a.body != "PROX, or not" {
		t.Errorf("a peer that is not trusted: %+v", a)
	}
	for _, refused := range []struct {
		from netip.Addr
		text string
	}{
		{proxyAt, "no header"},
		{proxyAt, "PROXY TCP4 one two 3 4\r\n"},
		{untrusted, "PROXY TCP4 192.0.2.1 192.0.2.2 3 4\r\nthen this"},
	} {
		if answer, err := io.ReadAll(b.send(refused.from, refused.text)); len(answer) > 0 || isTimeout(err) {
			t.Errorf("%v, %q: %q, %v, want a closed connection", refused.from, refused.text, answer, err)
		}
	}
	if refused := b.await("connection refused"); !strings.Contains(refused.text, "PROXY protocol header") {
		t.Errorf("the log does not say why: %s", refused.text)
	}
}

// TestProxyProtocolAndHeader: PROXY first, and if that names a trusted proxy, its header.
func TestProxyProtocolAndHeader(t *testing.T) {
	const slots = 16
	b := start(t, slots, options{flags: []string{"--proxy-protocol", "--behind-proxy"}})
	inner, client := netip.MustParseAddr("10.1.2.3"), proxied(3)
	a := b.ask(proxyAt, proxyHeader(t, 2, inner)+forwardedFor(client))
	if a.slot != slotOf(client, slots) || a.client != inner.String() {
		t.Errorf("%+v, want slot %d and client %v", a, slotOf(client, slots), inner)
	}
	a = b.ask(proxyAt, proxyHeader(t, 1, client)+forwardedFor(proxied(5)))
	if a.slot != slotOf(client, slots) {
		t.Errorf("a client that names another one: %+v, want slot %d", a, slotOf(client, slots))
	}
	a = b.ask(proxyAt, proxyHeader(t, 2, inner), forwardedFor(client))
	if a.slot != slotOf(client, slots) {
		t.Errorf("in two segments: %+v, want slot %d", a, slotOf(client, slots))
	}
}

func proxyHeader(t *testing.T, version byte, client netip.Addr) string {
	t.Helper()
	to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.250"), 80))
	if client.Is6() {
		to.IP = net.ParseIP("2001:db8::250")
	}
	header := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 4711)), to)
	text, err := header.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// raw sends text to a worker that plays "raw" and returns its answer, whose body is what
// reached the worker.
func (b *balancer) raw(from netip.Addr, parts ...string) (a answer) {
	b.t.Helper()
	parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	conn := b.send(from, parts...)
	defer conn.Close()
	text, err := io.ReadAll(conn)
	m := answerLine.FindStringSubmatch(string(text))
	if err != nil || m == nil {
		b.t.Fatalf("%q: answer %q, %v", parts, text, err)
	}
	a.slot, _ = strconv.Atoi(m[1])
	a.client, a.body = m[4], string(text[len(m[0]):])
	return a
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestNotHTTP: what does not begin like an HTTP/1 request goes to the slot of its peer
// at once, whatever the header timeout is.
func TestNotHTTP(t *testing.T) {
	const slots = 16
	b := start(t, slots, options{worker: []string{"raw"}, flags: []string{"--behind-proxy", "--header-timeout", "10m"}})
	for i, text := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS: the begin of a ClientHello
		"\x16",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", // HTTP/2 with prior knowledge (RFC 9113, section 3.3)
		"SSH-2.0-OpenSSH_9.2\r\n",
		"*1\r\n$4\r\nPING\r\n",
		"GET /\r\n",
		"\x00",
		"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.1\r\n folded: line\r\n",
	} {
		if a := b.raw(source(i), text); a.slot != slotOf(source(i), slots) || a.body != text {
			t.Errorf("%q: %+v, want slot %d", text, a, slotOf(source(i), slots))
		}
	}
	// A request that ends before its head does is the worker's to answer.
	conn := b.send(source(3), "GET / HTTP/1.1\r\nHo")
	conn.CloseWrite()
	if text, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(text), fmt.Sprintf("slot=%d ", slotOf(source(3), slots))) {
		t.Errorf("half a head and a FIN: %q, %v", text, err)
	}
}

// TestHeaderBounds: what comes too slowly, is too long, or one too many, is refused with
// an answer that arrives, and is closed when it is not known to be HTTP.
func TestHeaderBounds(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nHost: test\r\nX-Long: "
	t.Run("timeout", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "300ms"}})
		files := b.files()
		begin := time.Now()
		slow := b.send(proxyAt, "GET / HTTP/1.1\r\nHo")
		answers := make(chan answer, 1)
		go func() {
			a, err := response(slow)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
		// Byte by byte it lasts no longer.
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case a := <-answers:
				if took := time.Since(begin); a.status != http.StatusRequestTimeout || took < 300*time.Millisecond {
					t.Errorf("%+v after %v, want 408 after 300ms", a, took)
				}
			case <-tick.C:
				io.WriteString(slow, "x")
				continue
			}
			break
		}
		if text, err := io.ReadAll(b.send(proxyAt)); len(text) > 0 || isTimeout(err) {
			t.Errorf("a silent client reads %q, %v, want a closed connection", text, err)
		}
		slow.Close()
		if !eventually(func() bool { return b.files() <= files }) {
			t.Errorf("%d files are open, at the start %d", b.files(), files)
		}
	})
	t.Run("size", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-limit", "2KiB"}})
		for _, parts := range [][]string{
			{head + strings.Repeat("x", 64<<10)},
			{head, strings.Repeat("x", 64<<10)},
			{head + strings.Repeat("x", 2048-len(head))},
		} {
			conn := b.send(proxyAt, parts...)
			if a, err := response(conn); err != nil || a.status != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%+v, %v, want 431", a, err)
			}
			conn.Close()
		}
		if a := b.ask(proxyAt, head+strings.Repeat("x", 2048-len(head)-len("\r\nConnection: close\r\n\r\n"))+"\r\nConnection: close\r\n\r\n"); a.status != http.StatusOK {
			t.Errorf("2048 bytes: %+v", a)
		}
	})
	t.Run("number", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "10m", "--max-parked", "10", "--stop-timeout", "1ms"}})
		files := b.files()
		for range 5 { // half of the room: the rest is for those that wait for their slot
			defer b.send(proxyAt, head).Close()
		}
		if !eventually(func() bool { return b.files() >= files+5 }) {
			t.Fatal("they are not parked")
		}
		if a, err := response(b.send(proxyAt, head)); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("%+v, %v, want 503", a, err)
		}
		if a := b.ask(proxyAt, forwardedFor(proxied(1))); a.status != http.StatusOK {
			t.Errorf("a whole head: %+v", a)
		}
	})
	t.Run("close", func(t *testing.T) {
		b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "100ms", "--refuse", "close"}})
		if text, err := io.ReadAll(b.send(proxyAt, head)); len(text) > 0 || isTimeout(err) {
			t.Errorf("%q, %v, want a closed connection", text, err)
		}
	})
}

// TestStopWithHalfAHead: a stop waits for the rest of a head, as for whatever is parked.
func TestStopWithHalfAHead(t *testing.T) {
	b := start(t, 2, options{flags: []string{"--behind-proxy", "--header-timeout", "2s"}})
	head := forwardedFor(proxied(1))
	first, second := b.park(proxyAt, head[:20]), b.park(proxyAt, head[:20])
	files := b.files()
	b.signal(unix.SIGTERM)
	b.await("stopping")
	if !eventually(func() bool { return b.files() < files }) { // the listener is closed
		t.Fatal("it still listens")
	}
	io.WriteString(first, head[20:])
	if a, err := response(first); err != nil || a.slot != slotOf(proxied(1), 2) {
		t.Errorf("%+v, %v, want to be served", a, err)
	}
	if a, err := response(second); err != nil || a.status != http.StatusRequestTimeout {
		t.Errorf("%+v, %v, want 408", a, err)
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// TestTakenBackBehindProxy: what a dead worker did not take from its mailbox goes to its
// successor, not to the slot of the proxy: its head is peeked again, and a PROXY header
// that is gone already is not asked for again.
func TestTakenBackBehindProxy(t *testing.T) {
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

// TestPooledConnection: a proxy that sends requests of two clients over one connection
// is told to close it, and the operator once.
func TestPooledConnection(t *testing.T) {
	const said = "sends requests of several clients over one connection"
	b := start(t, 2, options{flags: []string{"--behind-proxy"}})
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
func (b *balancer) count(text string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if strings.Contains(l.text, text) {
			n++
		}
	}
	return n
}

// TestSlowClients: 5,000 clients that send a byte a second leave the others' latency as
// it was, and cost the master less than 64 MiB.
func TestSlowClients(t *testing.T) {
	const (
		slow   = 5000
		most   = 64 << 10 // KiB
		rounds = 5
	)
	program := filepath.Join(t.TempDir(), "handfast") // without the race detector and its memory
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	b := start(t, 2, options{
		flags:  []string{"--behind-proxy", "--header-timeout", "10m", "--stop-timeout", "1ms"},
		change: func(cmd *exec.Cmd) { cmd.Path = program },
	})
	latencies := func() (took []time.Duration) {
		for i := range 400 {
			begin := time.Now()
			b.ask(proxyAt, forwardedFor(proxied(i%100)))
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		return took
	}
	before, memory := latencies(), residentKiB(t, b.cmd.Process.Pid)
	head := forwardedFor(proxied(1))
	files := b.files()
	var clients []*net.TCPConn
	for i := range slow {
		conn := b.send(source(i%1000), head[:1])
		defer reset(conn)
		conn.SetDeadline(time.Time{})
		clients = append(clients, conn)
	}
	if !eventually(func() bool { return b.files() >= files+slow }) {
		t.Fatalf("%d of %d are parked", b.files()-files, slow)
	}
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int, 1)
	go func() { // one byte a second for each
		tick := time.NewTicker(time.Second / slow)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
				at := 1 + n/slow
				io.WriteString(clients[n%slow], head[at:at+1])
			case <-ctx.Done():
				sent <- n
				return
			}
		}
	}()
	var during []time.Duration
	for range rounds {
		during = append(during, latencies()...)
	}
	grown := residentKiB(t, b.cmd.Process.Pid) - memory
	cancel()
	slices.Sort(during)
	p99Before, p99 := before[len(before)*99/100], during[len(during)*99/100]
	t.Logf("%d slow clients sent %d bytes; p99 of others %v, before %v; the master has grown by %d KiB", slow, <-sent, p99, p99Before, grown)
	if grown > most {
		t.Errorf("they cost the master %d KiB, want at most %d", grown, most)
	}
	if p99 > 2*p99Before+20*time.Millisecond {
		t.Errorf("p99 of others was %v, is %v", p99Before, p99)
	}
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// residentKiB returns the memory that a process has in use.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	m := residentLine.FindSubmatch(status)
	if err != nil || m == nil {
		t.Fatal(err, string(status))
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}
