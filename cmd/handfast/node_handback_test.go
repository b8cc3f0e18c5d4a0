package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// pool is a connection of a proxy that sends requests of many clients over it.
type pool struct {
	*net.TCPConn
	b     *instance
	lines *bufio.Reader
}

func (b *instance) openPool(from netip.Addr) *pool {
	b.t.Helper()
	conn, err := b.dial(from)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return &pool{conn, b, bufio.NewReader(conn)}
}

// pooledRequest is a client's request as a proxy passes it on, with a body if that is not empty.
func pooledRequest(client netip.Addr, body string) string {
	if body == "" {
		return fmt.Sprintf("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\n\r\n", client)
	}
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\nContent-Length: %d\r\n\r\n%s", client, len(body), body)
}

// answered reads an answer.
func (p *pool) answered() answer {
	p.b.t.Helper()
	a, err := response(p.lines)
	if err != nil || a.status != http.StatusOK {
		p.b.t.Fatalf("answer %+v, %v", a, err)
	}
	return a
}

// asks sends the parts of a request one after the other, and reads the answer.
func (p *pool) asks(parts ...string) answer {
	p.b.t.Helper()
	for _, part := range parts {
		if _, err := io.WriteString(p, part); err != nil {
			p.b.t.Fatal(err)
		}
	}
	return p.answered()
}

const readsBodies = `
server.removeAllListeners('request');
server.on('request', (req, res) => { let n = 0; req.on('data', (d) => n += d.length); req.on('end', () => res.end(line(req.socket) + n)); });
`

// TestNodeHandsBack: each request on a proxy's connection is served in its own client's slot, also one with a body
// and one whose head comes in pieces, and across a reload. The program is any.
func TestNodeHandsBack(t *testing.T) {
	t.Parallel()
	const slots = 3
	b := startNode(t, slots, readsBodies+plain, nodeOptions{flags: []string{"--behind-proxy"}})
	b.showsRequests("each")
	p := b.openPool(proxyAt)
	requests := 0
	served := func(client netip.Addr, length int, a answer) {
		t.Helper()
		requests++
		if want := slotOf(client, slots); a.slot != want || !strings.HasSuffix(a.body, fmt.Sprintf("\n%d", length)) {
			t.Errorf("client %v, %d bytes: %+v, want slot %d", client, length, a, want)
		}
	}
	for i := range 30 {
		body := strings.Repeat("x", []int{0, 1, 70_000}[i%3])
		served(proxied(i), len(body), p.asks(pooledRequest(proxied(i), body)))
	}
	text := pooledRequest(proxied(1), "body")
	for at := 1; at < len(text); at += 11 {
		served(proxied(1), 4, p.asks(text[:at], text[at:]))
		served(proxied(2), 0, p.asks(pooledRequest(proxied(2), "")))
	}
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for i := range 10 {
		a := p.asks(pooledRequest(proxied(i), ""))
		if served(proxied(i), 0, a); a.generation != 2 {
			t.Errorf("client %d in generation %d", i, a.generation)
		}
	}
	p.Close()
	if s := b.status(); s.Totals.HandedBack == nil || int(*s.Totals.HandedBack) < requests-2 {
		t.Errorf("%d requests; totals %+v", requests, s.Totals)
	}
	b.stopClean(1)
}

// TestNodeHandsBackByMessage: programs that get their connections by messages hand them back, too.
func TestNodeHandsBackByMessage(t *testing.T) {
	t.Parallel()
	const slots = 3
	b := startNode(t, slots, `process.on('message', (m, s) => { if (m.msg === 'sticky:balance') server.emit('connection', s); }); process.send({ cmd: 'ready' });`,
		nodeOptions{flags: []string{"--behind-proxy"}})
	p := b.openPool(proxyAt)
	for i := range 20 {
		if a := p.asks(pooledRequest(proxied(i), "")); a.slot != slotOf(proxied(i), slots) {
			t.Errorf("client %v: %+v, want slot %d", proxied(i), a, slotOf(proxied(i), slots))
		}
	}
}

// TestNodeKeeps: what cannot be handed back, or is no proxy's, stays where it is and is served.
func TestNodeKeeps(t *testing.T) {
	t.Parallel()
	const slots = 4
	b := startNode(t, slots, tunnel+plain, nodeOptions{flags: []string{"--behind-proxy", "--trusted-proxies", proxyAt.String()}})
	handedBack := func() uint64 { return *b.status().Totals.HandedBack }
	t.Run("stranger", func(t *testing.T) {
		p := b.openPool(source(7))
		for i := range 5 {
			if a := p.asks(pooledRequest(proxied(i), "")); a.slot != slotOf(source(7), slots) {
				t.Errorf("%+v, want slot %d", a, slotOf(source(7), slots))
			}
		}
		if n := handedBack(); n != 0 {
			t.Errorf("%d are handed back", n)
		}
	})
	t.Run("pipelined", func(t *testing.T) {
		p := b.openPool(proxyAt)
		var text strings.Builder
		for i := range 5 {
			text.WriteString(pooledRequest(proxied(i), ""))
		}
		io.WriteString(p, text.String()+"GET / HT") // and the head of one more begins
		for range 5 {
			if a := p.answered(); a.slot != slotOf(proxied(0), slots) {
				t.Errorf("%+v, want slot %d", a, slotOf(proxied(0), slots))
			}
		}
		if a := p.asks("TP/1.1\r\nHost: test\r\n\r\n"); a.slot != slotOf(proxied(0), slots) {
			t.Errorf("%+v, want slot %d", a, slotOf(proxied(0), slots))
		}
	})
	t.Run("tunnel", func(t *testing.T) {
		p := b.openPool(proxyAt)
		p.asks(pooledRequest(proxied(0), ""))
		fmt.Fprintf(p, "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %v\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", proxied(1))
		if response, err := http.ReadResponse(p.lines, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%+v, %v", response, err)
		}
		for range 3 {
			io.WriteString(p, "hello\n")
			if line, err := p.lines.ReadString('\n'); line != "hello\n" {
				t.Fatalf("%q, %v", line, err)
			}
		}
	})
}

// TestNodeHandBackOff: with the flag off the first request on a connection decides, and Node loads nothing of ours.
func TestNodeHandBackOff(t *testing.T) {
	t.Parallel()
	const slots = 4
	b := startNode(t, slots, `say('options', process.env.NODE_OPTIONS);`+plain, nodeOptions{flags: []string{"--behind-proxy", "--hand-back=false"}})
	p := b.openPool(proxyAt)
	for i := range 8 {
		if a := p.asks(pooledRequest(proxied(i), "")); a.slot != slotOf(proxied(0), slots) {
			t.Errorf("client %v: %+v, want slot %d", proxied(i), a, slotOf(proxied(0), slots))
		}
	}
	for _, options := range b.hears("options", slots) {
		if options != "options " {
			t.Errorf("%q", options)
		}
	}
	b.showsRequests("first")
}

// TestNodeOptionsStay: options that Node has already stay, and processes that a worker starts are none of ours.
func TestNodeOptionsStay(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, `
const { fork } = require('child_process');
if (process.argv[2] === 'child') { http.createServer((q, r) => r.end()).listen(0, function () { http.get({ host: '127.0.0.1', port: this.address().port }, () => { process.send('served'); process.exit(); }); }); }
else {
	say('options', process.env.NODE_OPTIONS);
	const child = fork(__filename, ['child']);
	child.on('message', (m) => say('child', JSON.stringify(m)));
	child.on('exit', (code) => say('child ends with', code));
	server.listen(PORT);
}`, nodeOptions{flags: []string{"--behind-proxy"}, env: []string{"NODE_OPTIONS=--no-deprecation"}})
	if options := b.hears("options", 1)[0]; !strings.HasPrefix(options, `options --no-deprecation --require="/`) {
		t.Error(options)
	}
	b.hears("child ends with 0", 1)
	if said := b.said("child "); len(said) != 2 || said[0] != `child "served"` {
		t.Errorf("%q", said)
	}
}

// TestNodeSeesClientsGo: a program whose client goes away while it waits for its answer hears of that, also behind a proxy; and an
// answer of a length that is known is over with its last byte, whenever the program ends it.
func TestNodeSeesClientsGo(t *testing.T) {
	t.Parallel()
	const slots = 3
	b := startNode(t, slots, `
server.removeAllListeners('request');
server.on('request', (req, res) => {
	res.on('close', () => say('closed', req.url, res.writableFinished));
	if (req.url === '/polls') return;
	if (req.url === '/events') { res.write('event\n'); return; }
	const text = line(req.socket);
	res.setHeader('Content-Length', text.length);
	res.write(text);
	setTimeout(() => res.end(), 50);
});
`+plain, nodeOptions{flags: []string{"--behind-proxy"}})
	p := b.openPool(proxyAt)
	for i := range 20 {
		if a := p.asks(pooledRequest(proxied(i), "")); a.slot != slotOf(proxied(i), slots) {
			t.Errorf("client %v: %+v, want slot %d", proxied(i), a, slotOf(proxied(i), slots))
		}
	}
	for _, path := range []string{"/polls", "/events"} {
		p := b.openPool(proxyAt)
		p.asks(pooledRequest(proxied(1), ""))
		fmt.Fprintf(p, "GET %s HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\n\r\n", path, proxied(2))
		if path == "/events" {
			if response, err := http.ReadResponse(p.lines, nil); err != nil || response.StatusCode != http.StatusOK {
				t.Fatalf("%+v, %v", response, err)
			}
		} else {
			b.awaitStatus("its arrival", func(s *master.Status) bool { return s.Totals.Parked == 0 && *s.Totals.HandedBack >= 21 })
		}
		p.Close()
		b.hears("closed "+path+" false", 1)
	}
}

// TestNodeIdle: a connection of a pool is silent for longer than the header timeout, and over an upgrade, and serves the next request; handfast
// that stops ends it at once.
func TestNodeIdle(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	b := startNode(t, 1, plain, nodeOptions{flags: []string{"--behind-proxy", "--header-timeout", timeout.String()}})
	p := b.openPool(proxyAt)
	p.asks(pooledRequest(proxied(1), ""))
	silent := func() {
		t.Helper()
		time.Sleep(2 * timeout)
		b.awaitStatus("an idle connection", func(s *master.Status) bool { return s.Totals.Idle == 1 && s.Totals.Parked == 0 })
	}
	silent()
	p.asks(pooledRequest(proxied(2), ""))
	silent()
	b.upgradesTo(1)
	silent()
	p.asks(pooledRequest(proxied(3), ""))
	silent()
	b.stopClean(1)
	if _, err := p.lines.ReadByte(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

// TestNodeIdleTimeout: a connection on which nothing comes ends after --idle-timeout, which clients are told (Keep-Alive: timeout=) if it is shorter than
// the server's own.
func TestNodeIdleTimeout(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	b := startNode(t, 1, plain, nodeOptions{flags: []string{"--behind-proxy", "--idle-timeout", timeout.String()}})
	p := b.openPool(proxyAt)
	began := time.Now()
	io.WriteString(p, pooledRequest(proxied(1), ""))
	answer, err := http.ReadResponse(p.lines, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, answer.Body)
	if hint := answer.Header.Get("Keep-Alive"); hint != "timeout=1" {
		t.Errorf("Keep-Alive: %s", hint)
	}
	if _, err := p.lines.ReadByte(); err != io.EOF || time.Since(began) < timeout {
		t.Errorf("%v after %v, want EOF after %v", err, time.Since(began), timeout)
	}
}
