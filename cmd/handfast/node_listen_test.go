package main

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stickySession is a worker as sticky.listen() of that module makes it.
const stickySession = `
	const { close } = server;
	server.close = function () { process.send({ type: 'close' }); return close.apply(this, arguments); };
	const handle = (m, socket) => {
		if (m !== 'sticky:balance' || !socket) return;
		server._connections++;
		socket.server = server;
		server.emit('connection', socket);
	};
	leave = () => server.close();
`

// TestNodeModules: package.json says which module workers are written for, or a flag does. They
// run as they are, and leave as they do under that module.
func TestNodeModules(t *testing.T) {
	t.Parallel()
	listen := stickySession + `process.on('message', handle);`
	for name, test := range map[string]struct {
		script, depends string
		flags           []string
		leaves          bool
	}{
		"sticky-session":           {listen, "sticky-session", nil, true},
		"sticky-session, flag":     {listen, "", []string{"--worker-link", "sticky-session"}, true},
		"sticky-session, ready":    {listen + ready, "sticky-session", []string{"--ready-when", "message"}, true},
		"@socket.io/sticky":        {socketIOSticky, "@socket.io/sticky", nil, false},
		"listens, and needs none":  {plain, "sticky-session", nil, false},
		"listens, and needs none ": {plain, "@socket.io/sticky", nil, false},
		"both listen":              {plain + listen, "sticky-session", nil, true},
		"sticky-listen":            {stickyListen + ready, "sticky-listen", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := startNode(t, 1, test.script, nodeOptions{depends: test.depends, flags: test.flags})
			pid := b.worker(0)
			for range 3 {
				if a := b.mustGet(source(0), "/"); a.pid != pid {
					t.Errorf("%+v", a)
				}
			}
			if test.leaves {
				b.mustGet(source(0), "/leave")
				b.exitsWell(1)
				if a := b.mustGet(source(0), "/"); a.pid == pid {
					t.Errorf("%+v", a)
				}
			}
		})
	}
}

// TestNodeStartedFails: a version that fails in its first turn has never started, so it does not
// take a slot over.
func TestNodeStartedFails(t *testing.T) {
	t.Parallel()
	script := `if (generation > 1) { for (let end = Date.now() + 300; Date.now() < end;); throw new Error('broken'); }` + stickyListen
	b := startNode(t, 1, script, nodeOptions{flags: []string{"--ready-when", "started"}})
	b.signal(unix.SIGUSR2)
	b.await("reload failed")
	if a := b.mustGet(source(0), "/"); a.generation != 1 {
		t.Errorf("%+v", a)
	}
	if n := len(b.log("worker ready")); n != 1 {
		t.Errorf("%d workers were ready", n)
	}
}

// TestNodeListensAgain: a program may close its server and listen again, with the same or with
// another one, and nobody notices.
func TestNodeListensAgain(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]string{
		"another server": `server.close(); complain(http.createServer(answer)).listen(PORT);`,
		"after a while":  `server.close(); setTimeout(() => complain(http.createServer(answer)).listen(PORT), 100);`,
		"the same":       `server.close(() => server.listen(PORT)); setImmediate(() => server.closeIdleConnections && server.closeIdleConnections());`,
	} {
		t.Run(name, func(t *testing.T) {
			b := startNode(t, 1, `leave = () => { leave = () => {};`+way+`};`+plain, nodeOptions{})
			pid := b.worker(0)
			made, stop := b.load(4, "/")
			b.mustGet(source(0), "/leave")
			before := made.Load()
			if !eventually(func() bool { return made.Load() > before+50 || t.Failed() }) {
				t.Error("nothing is served")
			}
			time.Sleep(1200 * time.Millisecond) // nothing is to happen when its time to listen again is over
			stop()
			if a := b.mustGet(source(0), "/"); a.pid != pid || len(b.said("error")) > 0 {
				t.Errorf("%+v, workers say %q", a, b.said("error"))
			}
		})
	}
}

// TestNodeAddresses: a program may have a server for each address of the balancer's port, and
// each gets who has called it. Where the balancer does not listen there is an error.
func TestNodeAddresses(t *testing.T) {
	t.Parallel()
	const second = "127.0.0.77"
	var first, host, port string
	if !eventually(func() bool {
		first = freeAddress(t)
		host, port, _ = net.SplitHostPort(first)
		ln, err := net.Listen("tcp", net.JoinHostPort(second, port))
		if err == nil {
			ln.Close()
		}
		return err == nil
	}) {
		t.Fatal("no port is free on both addresses")
	}
	b := startNode(t, 1, `
		const { FIRST, SECOND, AT } = process.env;
		const named = (name) => complain(http.createServer((req, res) => { res.setHeader('X-Server', name); answer(req, res); }));
		named('second').listen(AT, SECOND, () => named('first').listen(AT, FIRST, () => complain(net.createServer()).listen(AT, '127.0.0.78', () => say('third listens'))));
	`, nodeOptions{
		flags: []string{"--listen", first, "--listen", net.JoinHostPort(second, port)},
		env:   []string{"FIRST=" + host, "SECOND=" + second, "AT=" + port},
	})
	b.hears("error EADDRNOTAVAIL", 1)
	b.await("worker listens where handfast does not")
	for want, addr := range map[string]string{"first": host, "second": second} {
		response, err := http.Get("http://" + net.JoinHostPort(addr, port))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("X-Server"); got != want {
			t.Errorf("who calls %s comes to the %s server", addr, got)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestNodeRefuses: a client behind a full server waits as long as for an empty slot, and then is
// refused or goes to the next.
func TestNodeRefuses(t *testing.T) {
	t.Parallel()
	for whenDown, want := range map[string]int{"wait": http.StatusBadGateway, "next": http.StatusOK} {
		t.Run(whenDown, func(t *testing.T) {
			b := startNode(t, 2, `server.maxConnections = 1; server.prependListener('request', () => say('request'));`+plain, nodeOptions{
				// A slow client never ends.
				flags: []string{"--max-retries", "4", "--retry-delay", "100ms", "--when-down", whenDown, "--stop-timeout", "50ms"},
			})
			slow, err := b.dial(sourceIn(0, 2, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer slow.Close()
			request(slow, "/sleep/20000ms")
			b.hears("request", 1)
			a, err := b.get(sourceIn(0, 2, 1), "/")
			if err != nil || a.status != want {
				t.Errorf("%+v, %v", a, err)
			}
			if want == http.StatusOK && a.slot != 1 {
				t.Errorf("%+v", a)
			}
		})
	}
}

// TestNodeWorkerObject: what a program finds in cluster and process is what Node documents.
func TestNodeWorkerObject(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, `server.listen(PORT, () => say('is', cluster.isWorker, !!cluster.isPrimary, cluster.worker.id > 0, process.connected,
		cluster.worker.isConnected(), cluster.worker.isDead(), String(cluster.worker.exitedAfterDisconnect), cluster.worker.process === process,
		server.address().port === +PORT, process.send('x')));`, nodeOptions{})
	if got := b.hears("is", 1)[0]; got != "is true false true true true false undefined true true true" {
		t.Error(got)
	}
}

// TestNodeExclusive: what a worker binds for itself is its own affair: another port works, the
// balancer's is in use.
func TestNodeExclusive(t *testing.T) {
	t.Parallel()
	other := freeAddress(t)
	b := startNode(t, 1, `
		const { AT, HOST } = process.env;
		const tell = (what, s) => s.on('listening', () => say('listening', what)).on('error', (err) => say('error', what, err.code));
		server.listen(PORT, () => {
			tell('other', http.createServer(answer)).listen({ port: otherPort, host: otherHost, exclusive: true });
			tell('udp', dgram.createSocket('udp4')).bind({ port: +otherPort, address: otherHost, exclusive: true });
			tell('same', http.createServer(answer)).listen({ port: PORT, host: '0.0.0.0', exclusive: true });
		});
	`, nodeOptions{env: []string{"OTHER=" + other}, flags: []string{"--stop-timeout", "50ms"}}) // its own sockets keep it
	b.hears("listening other", 1)
	b.hears("listening udp", 1)
	b.hears("error same EADDRINUSE", 1)
	response, err := http.Get("http://" + other)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if errs := b.said("error"); !slices.Equal(errs, []string{"error same EADDRINUSE"}) {
		t.Errorf("workers say %q", strings.Join(errs, "; "))
	}
}
