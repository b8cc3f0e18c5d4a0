package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// prelude begins every script: an HTTP server, not listening yet, that answers as the
// workers of the other tests do. What a script has to say it writes to standard error,
// which is the balancer's.
const prelude = `'use strict';
const cluster = require('cluster'), dgram = require('dgram'), fs = require('fs');
const http = require('http'), https = require('https'), net = require('net');
const { PORT, OTHER, HANDFAST_SLOT: slot, HANDFAST_GENERATION: generation } = process.env;
const [otherHost, otherPort] = (OTHER || '').split(':');
const line = (socket) => ` + "`slot=${slot} pid=${process.pid} generation=${generation} client=${socket.remoteAddress}\\n`" + `;
let leave = () => {};
function answer(req, res) {
  const delay = /^\/sleep\/(\d+)ms$/.exec(req.url);
  const end = () => res.end(line(req.socket) + (cluster.isWorker ? 'worker ' + cluster.worker.id : 'no worker'));
  if (req.url === '/leave') leave();
  if (delay) setTimeout(end, +delay[1]); else end();
}
const server = http.createServer(answer);
const say = (...words) => fs.writeSync(2, words.join(' ') + '\n');
const complain = (s) => s.on('error', (err) => say('error', err.code));
`

// nodeOptions changes how a balancer with Node workers is started.
type nodeOptions struct {
	flags    []string // of `handfast run`
	env      []string
	shell    string   // run the script by sh, after this
	wrap     []string // before the command
	depends  string   // the module that the program and its package.json name
	notReady bool
	lean     bool // as in options
	change   func(*exec.Cmd)
}

// startNode runs a script in n workers, as start does. PORT is the balancer's, OTHER
// another address that is free.
func startNode(t *testing.T, n int, script string, o nodeOptions) *instance {
	t.Helper()
	return start(t, n, withNode(t, script, o))
}

// withNode are the options of a balancer whose workers run a script.
func withNode(t *testing.T, script string, o nodeOptions) options {
	t.Helper()
	node := findNode(t)
	path := filepath.Join(t.TempDir(), "server.js")
	if err := os.WriteFile(path, []byte(prelude+script+"\n// "+o.depends), 0o600); err != nil {
		t.Fatal(err)
	}
	if o.depends != "" {
		text := fmt.Sprintf(`{"dependencies": {%q: "^1.0.0"}}`, o.depends)
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), "package.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	worker := []string{node, path}
	if o.shell != "" {
		worker = []string{"sh", "-c", o.shell + `; exec "$@"`, "sh", node, path}
		o.flags = append(o.flags, "--worker-link", "node")
	}
	worker = append(slices.Clone(o.wrap), worker...)
	addr := freeAddress(t)
	_, port, _ := net.SplitHostPort(addr)
	return options{
		flags:    append([]string{"--listen", addr}, o.flags...),
		notReady: o.notReady,
		lean:     o.lean,
		change: func(cmd *exec.Cmd) {
			cmd.Args = append(cmd.Args[:slices.Index(cmd.Args, "--")+1], worker...)
			cmd.Env = append(cmd.Env, "PORT="+port, "NODE_OPTIONS=", "NODE_ENV=")
			cmd.Env = append(cmd.Env, o.env...)
			if o.change != nil {
				o.change(cmd)
			}
		},
	}
}

func findNode(t *testing.T) string {
	t.Helper()
	return trial.Need(t, "node", "nodejs")
}

// freeAddress returns an address nobody else uses: on a random address of the loopback
// network, below the ports that the kernel gives out.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		r := mathrand.Uint32()
		ip := netip.AddrFrom4([4]byte{127, byte(100 + r%100), byte(r >> 8), byte(1 + r>>16%250)})
		addr := netip.AddrPortFrom(ip, uint16(10_000+r>>4%20_000)).String()
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no address is free")
	return ""
}

// said returns the lines that workers wrote and that begin with this.
func (b *instance) said(prefix string) (found []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if l.Message == "" && strings.HasPrefix(l.text, prefix) {
			found = append(found, l.text)
		}
	}
	return found
}

// hears waits until workers have written n lines that begin with prefix.
func (b *instance) hears(prefix string, n int) []string {
	b.t.Helper()
	if !eventually(func() bool { return len(b.said(prefix)) >= n }) {
		b.t.Fatalf("workers wrote %q, want %q %d times", b.said(""), prefix, n)
	}
	return b.said(prefix)
}

// exitsWell fails unless n workers have ended, all by themselves.
func (b *instance) exitsWell(n int) {
	b.t.Helper()
	for _, l := range b.awaitCount("worker exited", n) {
		if l.Exit != "status 0" {
			b.t.Errorf("worker %d ended with %s", l.PID, l.Exit)
		}
	}
}

// stopClean stops the balancer, which must have lost nothing of so many connections.
func (b *instance) stopClean(clients int) {
	b.t.Helper()
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK {
		b.t.Errorf("exit status %d", status)
	}
	if end := b.await("stopped"); end.Accepted != clients || end.Refused != 0 {
		b.t.Errorf("%d clients; counted: %s", clients, end.text)
	}
}

const plain = `server.listen(PORT);`

// TestNodeSticky: a program that only listens is in its slot, sees its clients' own
// addresses, and itself as a cluster worker with a number of its own.
func TestNodeSticky(t *testing.T) {
	t.Parallel()
	const workers = 3
	b := startNode(t, workers, plain, nodeOptions{})
	for from, slot := range b.slotsOf(sources(30), 2) {
		if want := hash.DefaultConfig().Key(from).Slot(workers); slot != want {
			t.Errorf("%v came to slot %d, want %d", from, slot, want)
		}
	}
	pids := make(map[string]int)
	for _, from := range sources(30) {
		a := b.mustGet(from, "/")
		_, id, _ := strings.Cut(a.body, "\n")
		if pid, known := pids[id]; known && pid != a.pid || !regexp.MustCompile(`^worker [1-9]`).MatchString(id) {
			t.Errorf("pid %d calls itself %q, as does %d", a.pid, id, pid)
		}
		pids[id] = a.pid
	}
	if len(pids) != workers {
		t.Errorf("workers: %v", pids)
	}
}

// selfSigned writes a certificate and its key, and returns who trusts it.
func selfSigned(t *testing.T) (files string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		DNSNames:     []string{"test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, _ := x509.ParseCertificate(der)
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	return dir, roots
}

// TestNodeTLS: TLS is the workers' own, and a session that one of them has begun goes on
// with another, of the next generation and of another slot (RFC 5077, RFC 8446 section 4.6.1).
func TestNodeTLS(t *testing.T) {
	t.Parallel()
	dir, roots := selfSigned(t)
	b := startNode(t, 2, `
		const read = (name) => fs.readFileSync(process.env.KEYS + '/' + name);
		https.createServer({ key: read('key'), cert: read('cert') }, answer).listen(PORT);
	`, nodeOptions{env: []string{"KEYS=" + dir}})
	for generation, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{RootCAs: roots, ServerName: "test", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
		ask := func(from netip.Addr) (answer, bool) {
			t.Helper()
			conn, err := b.dial(from)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := tls.Client(conn, config)
			if err := request(client, "/"); err != nil {
				t.Fatal(err)
			}
			a, err := response(client)
			if err != nil || a.client != from.String() {
				t.Fatalf("%+v, %v", a, err)
			}
			return a, client.ConnectionState().DidResume
		}
		first, resumed := ask(sourceIn(0, 2, 0))
		if resumed {
			t.Error("the first connection resumes a session")
		}
		if a, resumed := ask(sourceIn(1, 2, 0)); a.pid == first.pid || !resumed {
			t.Errorf("%x: the other slot does not resume the session: %+v", version, a)
		}
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", generation+1)
		if a, resumed := ask(sourceIn(0, 2, 0)); a.slot != first.slot || a.pid == first.pid || !resumed {
			t.Errorf("%x: the next generation does not resume the session: %+v", version, a)
		}
	}
}

// TestNodeKillWithFullLink: a worker is killed while its channel, our queue for it and the
// waitlist are full of connections. All are answered by its successor.
func TestNodeKillWithFullLink(t *testing.T) {
	t.Parallel()
	const clients = 400
	b := startNode(t, 2, plain, nodeOptions{flags: []string{"--max-retries", "300"}})
	files := b.files()
	victim := b.worker(1)
	freeze(t, victim)
	waiting := b.open(sourceIn(1, 2, 0), clients)
	if !eventually(func() bool { return b.files() >= files+clients }) {
		t.Fatalf("the master has %d open files, at the start %d: what is not acknowledged it must keep", b.files(), files)
	}
	unix.Kill(victim, unix.SIGKILL)
	for i, conn := range waiting {
		a, err := response(conn)
		if err != nil || a.status != http.StatusOK || a.pid == victim || a.pid != b.worker(1) {
			t.Fatalf("client %d: %+v, %v", i, a, err)
		}
	}
	if !eventually(func() bool { return b.files() <= files }) {
		t.Errorf("%d files are open, at the start %d", b.files(), files)
	}
	b.stopClean(clients)
}

// reloads is how often a trial reloads: n times, or as often as asked (make soak).
func reloads(t *testing.T, n int) int {
	t.Helper()
	return fromEnv(t, "HANDFAST_TEST_RELOADS", n)
}

// TestNodeReloadUnderLoad: no request fails, whatever is going on when a worker drains.
func TestNodeReloadUnderLoad(t *testing.T) {
	t.Parallel()
	b := startNode(t, 2, plain, nodeOptions{})
	made, stop := b.load(8, "/", "/sleep/10ms", "/sleep/300ms", "/")
	for i := range reloads(t, 5) {
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", i+1)
		if !eventually(func() bool { return made.Load() >= int64(10*i) || t.Failed() }) {
			t.Fatalf("only %d requests were answered during %d reloads", made.Load(), i+1)
		}
	}
	stop()
	b.exitsWell(2 * reloads(t, 5))
}

// TestNodeKillUnderLoad: a worker that is killed takes with it only what it had accepted:
// those clients see their connection end, at once. Nobody is left waiting.
func TestNodeKillUnderLoad(t *testing.T) {
	t.Parallel()
	const kills, clients = 4, 8
	b := startNode(t, 2, plain, nodeOptions{flags: []string{"--min-uptime", "0s", "--max-retries", "250"}})
	var failed, made atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				switch a, err := b.get(source(i), "/"); {
				case err == nil && a.status == http.StatusOK:
					made.Add(1)
				case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
					failed.Add(1)
				default:
					t.Errorf("client %d: %+v, %v", i, a, err)
					return
				}
				time.Sleep(breath)
			}
		})
	}
	for i := range kills {
		before := made.Load()
		if !eventually(func() bool { return made.Load() > before+40 || t.Failed() }) {
			t.Error("nothing is served")
		}
		unix.Kill(b.worker(i%2), unix.SIGKILL)
		b.awaitCount("worker ready", 2+i+1)
	}
	cancel()
	running.Wait()
	if f := failed.Load(); f > kills*clients {
		t.Errorf("%d requests failed in %d kills, %d were answered", f, kills, made.Load())
	}
}

// The workers of other balancers, as their READMEs have them.
const (
	stickyListen   = `process.on('message', (m, socket) => { if (m.msg === 'sticky:balance') { server.emit('connection', socket); } });`
	socketIOSticky = `process.on('message', ({ type, data }, socket) => {
		if (type === 'sticky:connection') { server.emit('connection', socket); socket.resume(); }
	});`
	ready = `process.send({ cmd: 'ready' });`
)

// TestNodeReady: a worker is ready when it listens or says so, and then is served by what
// it has: a server, or a handler of messages.
func TestNodeReady(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ script, when string }{
		"listens":                         {plain, "auto"},
		"listens on an address":           {`server.listen(PORT, '127.0.0.1');`, "auto"},
		"listens on a name":               {`server.listen({ port: PORT, host: 'localhost' });`, "auto"},
		"listens and says so":             {plain + ready, "auto"},
		"listens on a name and says so":   {`server.listen(PORT, 'localhost');` + ready, "auto"},
		"listens after a while, and is":   {`setTimeout(() => server.listen(PORT), 50);`, "listening"},
		"says so before it listens":       {ready + `setTimeout(() => server.listen(PORT), 50);`, "listening"},
		"listens before it says so":       {plain + `setTimeout(() => process.send({ cmd: 'ready', port: 'any', ack: {} }), 50);`, "message"},
		"sticky-listen":                   {stickyListen + ready, "auto"},
		"sticky-listen, message":          {stickyListen + ready, "message"},
		"sticky-listen, started":          {stickyListen, "started"},
		"@socket.io/sticky":               {socketIOSticky + ready, "auto"},
		"@socket.io/sticky, started":      {socketIOSticky, "started"},
		"sticky-listen with another port": {`server.listen(0, '127.0.0.1', () => process.send({ cmd: 'ready' }));` + stickyListen, "auto"},
	} {
		t.Run(name, func(t *testing.T) {
			b := startNode(t, 1, test.script, nodeOptions{flags: []string{"--ready-when", test.when}})
			for range 3 {
				b.mustGet(source(0), "/")
			}
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if a := b.mustGet(source(0), "/"); a.generation != 2 {
				t.Errorf("%+v", a)
			}
			b.exitsWell(1)
		})
	}
}

// TestNodeNotReady: what does not become ready is replaced, and the log says so.
func TestNodeNotReady(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ script, when string }{
		"does nothing":          {`setInterval(() => {}, 1000);`, "auto"},
		"only listens":          {plain, "message"},
		"only says so":          {stickyListen + ready, "listening"},
		"listens elsewhere":     {`server.listen(0, '127.0.0.1');`, "auto"},
		"listens by itself":     {`server.listen({ port: 0, host: '127.0.0.1', exclusive: true });`, "auto"},
		"says something else":   {`process.send('ready'); process.send({ cmd: 'online' }); process.send([1]); setInterval(() => {}, 1000);`, "auto"},
		"says it without 'cmd'": {`process.send({ ready: true }); setInterval(() => {}, 1000);`, "auto"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is a wait
			b := startNode(t, 1, test.script, nodeOptions{notReady: true, flags: []string{"--ready-timeout", "700ms", "--ready-when", test.when}})
			if l := b.await("worker is not ready in time; it must accept connections or say ready"); !strings.Contains(l.text, `"link":"node"`) || !strings.Contains(l.text, "--ready-timeout") {
				t.Errorf("%s does not say what it waits for, and how long", l.text)
			}
			if ready := b.log("worker ready"); len(ready) > 0 {
				t.Errorf("it is: %s", ready[0].text)
			}
		})
	}
}

// TestNodeLeaves: a worker that goes by itself, in any of the ways that Node and recluster
// have, is replaced. It finishes what it has, unless it has cut itself off.
func TestNodeLeaves(t *testing.T) {
	t.Parallel()
	const times = 2
	for name, way := range map[string]string{
		"cluster.worker.disconnect": `cluster.worker.disconnect()`,
		"cluster.worker.kill":       `cluster.worker.kill()`,
		"process.disconnect":        `process.disconnect()`,
		"cmd disconnect":            `process.send({ cmd: 'disconnect' })`,
		"server.close":              `server.close()`,
		"process.exit":              `process.exit()`,
	} {
		t.Run(name, func(t *testing.T) {
			b := startNode(t, 2, `leave = () => {`+way+`};`+plain, nodeOptions{flags: []string{"--min-uptime", "0s", "--max-retries", "600"}})
			_, stop := b.load(2, "/") // in both slots
			if a, z := b.mustGet(source(0), "/"), b.mustGet(source(1), "/"); a.slot == z.slot {
				t.Fatal("these clients have one slot")
			}
			abrupt := strings.HasPrefix(name, "process") || strings.HasSuffix(name, "kill")
			if abrupt {
				stop() // they could be cut off
			}
			for i := range times {
				a, err := b.get(source(0), "/leave")
				if !abrupt && (err != nil || a.status != http.StatusOK) {
					t.Errorf("who made it leave: %+v, %v", a, err)
				}
				b.awaitCount("worker ready", 2+i+1)
				b.exitsWell(i + 1)
			}
			for i := range 10 {
				b.mustGet(source(i), "/")
			}
			stop()
		})
	}
}

// TestNodeDrain: a worker that is replaced hears of it as Node's cluster and recluster tell
// it, and finishes a slow request; idle keep-alive connections do not hold it up.
func TestNodeDrain(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"server":        plain,
		"sticky-listen": stickyListen + ready,
	} {
		t.Run(name, func(t *testing.T) {
			b := startNode(t, 1, script+`
				cluster.worker.on('disconnect', () => say('disconnected', cluster.worker.exitedAfterDisconnect));
				process.on('message', (m) => { if (m.cmd === 'disconnect') say('told', cluster.worker.isConnected()); });
				server.on('close', () => say('closed'));
			`, nodeOptions{})
			idle, err := b.dial(source(1))
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
			fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			if _, err := idle.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			slow, err := b.dial(source(0))
			if err != nil {
				t.Fatal(err)
			}
			defer slow.Close()
			request(slow, "/sleep/400ms")
			first := b.mustGet(source(0), "/")
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			if a := b.mustGet(source(0), "/"); a.pid == first.pid {
				t.Error("the old worker answers")
			}
			if a, err := response(slow); err != nil || a.pid != first.pid {
				t.Errorf("%+v, %v", a, err)
			}
			if name != "server" {
				idle.Close() // a server that does not listen has nobody who closes it
			}
			b.exitsWell(1)
			b.hears("told true", 1)
			b.hears("disconnected true", 1)
			if name == "server" {
				b.hears("closed", 1)
			}
		})
	}
}

// TestNodeMaxConnections: what a server refuses is offered again until it is taken, and
// nobody spins meanwhile.
func TestNodeMaxConnections(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, `server.maxConnections = 1;`+plain, nodeOptions{flags: []string{"--max-retries", "300"}})
	slow, err := b.dial(source(0))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	request(slow, "/sleep/700ms")
	waiting := b.open(source(1), 5)
	begin, used := time.Now(), cpuTime(t, b.cmd.Process.Pid)
	if a, err := response(slow); err != nil || a.status != http.StatusOK {
		t.Errorf("%+v, %v", a, err)
	}
	if share := float64(cpuTime(t, b.cmd.Process.Pid)-used) / float64(time.Since(begin)); share > 0.5 {
		t.Errorf("the master uses %.0f %% of a CPU to offer what is refused", 100*share)
	}
	for i, conn := range waiting {
		if a, err := response(conn); err != nil || a.status != http.StatusOK {
			t.Errorf("client %d: %+v, %v", i, a, err)
		}
	}
	b.stopClean(6)
}

// bothAnswer asks elsewhere than the balancer until both of two workers have answered. Each of
// them says its pid.
func bothAnswer(t *testing.T, b *instance, ask func() (string, error)) {
	t.Helper()
	seen := make(map[string]bool)
	if !eventually(func() bool {
		text, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		seen[text] = true
		return len(seen) == 2
	}) {
		t.Fatalf("only %v answers", seen)
	}
	for slot := range 2 {
		if pid := strconv.Itoa(b.worker(slot)); !seen[pid] {
			t.Errorf("%s does not answer, but %v", pid, seen)
		}
	}
}

func askStream(network, addr string) func() (string, error) {
	return func() (string, error) {
		conn, err := net.DialTimeout(network, addr, patience)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		text, err := io.ReadAll(conn)
		return string(text), err
	}
}

func askDatagram(addr string) func() (string, error) {
	return func() (string, error) {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write([]byte("who?"))
		text := make([]byte, 100)
		n, err := conn.Read(text)
		return string(text[:n]), err
	}
}

// TestNodeOtherListens: what a program listens on besides is shared by all workers, as under
// Node's cluster, also by those of the next generation.
func TestNodeOtherListens(t *testing.T) {
	t.Parallel()
	other, path := freeAddress(t), filepath.Join(t.TempDir(), "socket")
	b := startNode(t, 2, `
		const who = () => complain(net.createServer((c) => c.end(String(process.pid))));
		who().listen(+otherPort, otherHost, () => {
			const zero = who().listen(0, '127.0.0.1', () => {
				say('port', zero.address().port);
				who().listen(process.env.SOCKET, () => {
					const udp = complain(dgram.createSocket('udp4'));
					udp.on('message', (m, from) => udp.send(String(process.pid), from.port, from.address));
					udp.bind(+otherPort, otherHost, () => server.listen(PORT));
				});
			});
		});
	`, nodeOptions{env: []string{"OTHER=" + other, "SOCKET=" + path}})
	for generation := range 2 {
		ports := b.hears("port", 2*(generation+1))
		if len(slices.Compact(slices.Sorted(slices.Values(ports)))) != 1 {
			t.Errorf("port 0 is %q", ports)
		}
		bothAnswer(t, b, askStream("tcp", other))
		bothAnswer(t, b, askStream("tcp", "127.0.0.1:"+strings.Fields(ports[0])[1]))
		bothAnswer(t, b, askStream("unix", path))
		bothAnswer(t, b, askDatagram(other))
		b.mustGet(source(0), "/")
		b.signal(unix.SIGUSR2)
		b.awaitCount("reload finished", generation+1)
		b.exitsWell(2 * (generation + 1))
	}
	if errs := b.said("error"); len(errs) > 0 {
		t.Errorf("workers say %q", errs)
	}
	b.signal(unix.SIGTERM)
	b.exit()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the path is left behind, and the next start would fail (EADDRINUSE)")
	}
}

// TestNodeListenFails: what cannot be is an error with a code, which the program gets where
// Node says it does, and nothing else is disturbed.
func TestNodeListenFails(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for code, script := range map[string]string{
		"EADDRINUSE": `complain(http.createServer(answer)).listen(PORT);`,
		// Another port, that somebody else has; a name of a test must be its own.
		"EADDRINUSE ":   `complain(net.createServer()).listen(+otherPort, otherHost);`,
		"ENOTSUP":       `complain(net.createServer()).listen({ fd: 3 });`,
		"ENOENT":        `complain(net.createServer()).listen('/nonexistent/socket');`,
		"EADDRNOTAVAIL": `complain(net.createServer()).listen(+otherPort, '192.0.2.1');`,
	} {
		t.Run(code, func(t *testing.T) {
			b := startNode(t, 1, `server.listen(PORT, () => {`+script+`});`, nodeOptions{env: []string{"OTHER=" + taken.Addr().String()}})
			b.hears("error "+strings.TrimSpace(code), 1)
			b.mustGet(source(0), "/")
		})
	}
}

// TestNodeFileLimit: a worker at its limit of open files gets what it could not take again,
// when it has closed others.
func TestNodeFileLimit(t *testing.T) {
	t.Parallel()
	const clients = 120
	b := startNode(t, 1, plain, nodeOptions{shell: "ulimit -n 40", flags: []string{"--max-retries", "300"}})
	var waiting []*net.TCPConn
	for range clients {
		conn, err := b.dial(source(0))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		request(conn, "/sleep/50ms")
		waiting = append(waiting, conn)
	}
	for i, conn := range waiting {
		if a, err := response(conn); err != nil || a.status != http.StatusOK {
			t.Fatalf("client %d: %+v, %v", i, a, err)
		}
	}
	b.stopClean(clients)
}

// TestNodeMessages: a program may send whatever it likes. It concerns nobody.
func TestNodeMessages(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b := startNode(t, 1, plain+`
		server.on('listening', () => {
			for (const m of ['text', 7, true, null, [], {}, { cmd: 5 }, { cmd: 'NODE_' }, { cmd: 'NODE_HANDLE_ACK' }, { cmd: 'NODE_HANDLE_NACK' },
				{ cmd: 'NODE_CLUSTER', ack: 1, accepted: false }, { cmd: 'NODE_CLUSTER', act: 'close', key: 'none' }, { text: 'x'.repeat(20 << 20) }]) process.send(m);
			const client = net.connect(+otherPort, otherHost, () => process.send({}, client, { keepOpen: true }, () => say('sent')));
		});
	`, nodeOptions{env: []string{"OTHER=" + other.Addr().String()}})
	b.hears("sent", 1)
	pid := b.mustGet(source(0), "/").pid
	for range 20 {
		if a := b.mustGet(source(0), "/"); a.pid != pid {
			t.Fatalf("%+v, before %d", a, pid)
		}
	}
}

// TestNodeChosen: auto takes the link that the command needs.
func TestNodeChosen(t *testing.T) {
	t.Parallel()
	var out fdtest.Log
	args := []string{"handfast", "run", "--worker-link", "cluster", "--", "true"}
	if status := run(context.Background(), args, &out, &out); status != exitUsage || !strings.Contains(out.String(), `--worker-link`) {
		t.Errorf("exit status %d: %s", status, &out)
	}
}
