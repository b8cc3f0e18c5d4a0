package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// pooling is a proxy that keeps its connections to handfast, and lends each to whoever comes. None tries a request
// again, so what fails shows; Varnish alone does, if it has no body.
type pooling struct {
	trial.Proxy
	conf string // with a place for handfast's address
}

var poolings = map[string]pooling{
	"nginx": {trial.Nginx, `worker_processes 2; events { worker_connections 1024; }
http {
	upstream handfast { server %s; keepalive 64; }
	server {
		listen 80;
		location / {
			proxy_pass http://handfast;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_next_upstream off;
		}
	}
}`},
	"HAProxy": {trial.HAProxy, `defaults
	mode http
	timeout connect 1m
	timeout client 1m
	timeout server 1m
	retries 0
frontend web
	bind :80
	default_backend handfast
backend handfast
	option forwardfor
	http-reuse always
	server handfast %s
`},
	"Apache": {trial.Apache, fmt.Sprintf(trial.Apache.Whole, `MaxKeepAliveRequests 0
ProxyPass "/" "http://%s/"
`)},
	"Caddy": {trial.Caddy, fmt.Sprintf(trial.Caddy.Whole, `
:80 {
	reverse_proxy %s {
		trusted_proxies 127.0.0.0/8
	}
}
`)},
	"h2o": {trial.H2O, `listen: 80
hosts:
  default:
    paths:
      /:
        proxy.reverse.url: "http://%s/"
        proxy.timeout.keepalive: 60000
`},
	"Varnish": {trial.Varnish, `vcl 4.1;
backend handfast { .host = "%s"; }
sub vcl_recv { return (pass); }
`},
}

// poolClients is how many clients a proxy has at the same time, in front of its pool.
const poolClients = 16

// pooledRequests is how many requests TestHandBack makes at least through a proxy, or says what the environment does; and
// what each client takes between two, so that workers can start meanwhile.
func pooledRequests(t *testing.T, few int) (n int, pause time.Duration) {
	t.Helper()
	text := os.Getenv("HANDFAST_TEST_REQUESTS")
	if text == "" {
		return few, breath
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n, 0
}

// TestHandBack: through proxies that lend their connections to whoever comes, each request is served in its own
// client's slot, and none fails, while workers are reloaded and killed and the program is replaced.
func TestHandBack(t *testing.T) {
	t.Parallel()
	const slots = 3
	for _, tt := range []struct {
		proxy string
		node  bool
		few   int
	}{
		{"nginx", false, 1000},
		{"nginx", true, 1000},
		{"HAProxy", false, 1000},
		{"HAProxy", true, 300},
		{"Apache", false, 300},
		{"Caddy", false, 300},
		{"h2o", false, 300},
		{"Varnish", false, 300},
	} {
		workers := "Go"
		if tt.node {
			workers = "Node"
		}
		t.Run(tt.proxy+"/"+workers, func(t *testing.T) {
			proxy := poolings[tt.proxy]
			proxy.Need(t)
			var b *instance
			flags := []string{"--behind-proxy"}
			if tt.node {
				b = startNode(t, slots, readsBodies+plain, nodeOptions{flags: flags})
			} else {
				b = start(t, slots, options{flags: flags})
			}
			front := proxy.Run(t, fmt.Sprintf(proxy.conf, b.addr))
			n, pause := pooledRequests(t, tt.few)
			b.tryHandBack(&pooledLoad{t: t, address: front.Address, slots: slots, pause: pause}, n)
		})
	}
}

// tryHandBack puts a balancer through all that can happen to its workers, under load.
func (b *instance) tryHandBack(l *pooledLoad, requests int) {
	stop := l.start()
	defer stop()
	stage := func(i int) { l.await(requests * i / 4) }
	stage(1)
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	b.awaitCount("worker exited", l.slots) // although the proxy keeps its connections
	stage(2)
	l.running.Lock() // what is under way in a worker that is killed may fail
	kill(b.t, b.worker(0))
	b.awaitCount("worker ready", 2*l.slots+1)
	l.running.Unlock()
	stage(3)
	b.upgrades(1)
	l.await(max(requests, int(l.made.Load())+requests/4))
	stop()
	s := b.status()
	b.t.Logf("%d requests, %d of them in a wrong slot, %d failed; %d connections were handed back, and %d passed to the workers that there are now",
		l.made.Load(), l.strayed.Load(), l.failed.Load(), *s.Totals.HandedBack, b.passed())
	if l.strayed.Load() > 0 || l.failed.Load() > 0 || s.Totals.Refused > 0 {
		b.t.Errorf("totals: %+v", s.Totals)
	}
	if !eventually(func() bool { return int64(*s.Totals.HandedBack+b.passed()) >= l.made.Load()/8 }) { // what is passed is reported later
		b.t.Error("so few connections were handed back or passed that the proxy has no pool")
	}
}

// passed returns how many connections other workers have passed to those that are in slots now, as they have reported.
func (b *instance) passed() (n uint64) {
	for _, sl := range b.status().Slots {
		if w := sl.Worker; w != nil && w.Passed != nil {
			n += *w.Passed
		}
	}
	return n
}

// pooledLoad are requests of a thousand clients, made through a proxy.
type pooledLoad struct {
	t       *testing.T
	address string // of the proxy
	slots   int
	pause   time.Duration // of each client between two requests
	running sync.RWMutex  // held while a request is under way

	made, strayed, failed atomic.Int64
}

// start makes requests until stop.
func (l *pooledLoad) start() (stop func()) {
	ended := make(chan struct{})
	var clients sync.WaitGroup
	for range poolClients {
		clients.Go(func() {
			conn := new(keptConn)
			defer conn.close()
			for {
				select {
				case <-ended:
					return
				default:
					l.one(conn)
					time.Sleep(l.pause)
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(ended); clients.Wait() })
}

// await waits until so many requests were made.
func (l *pooledLoad) await(n int) {
	l.t.Helper()
	for last := int64(-1); l.made.Load() < int64(n); {
		if !eventually(func() bool { return l.made.Load() > last }) {
			l.t.Fatalf("no answer after %d requests", last)
		}
		last = l.made.Load()
	}
}

// one makes a request for any client, some with a body.
func (l *pooledLoad) one(conn *keptConn) {
	l.running.RLock()
	defer l.running.RUnlock()
	client := proxied(rand.IntN(1000))
	length := 0
	if rand.IntN(4) == 0 {
		length = 1 + rand.IntN(20_000)
	}
	a, err := conn.ask(l.address, pooledRequest(client, strings.Repeat("x", length)))
	l.made.Add(1)
	switch {
	case err != nil || a.status != http.StatusOK || length > 0 && !strings.HasSuffix(a.body, fmt.Sprintf("\n%d", length)):
		conn.close()
		if l.failed.Add(1) < 10 {
			l.t.Errorf("%s: client %v, %d bytes: %+v, %v", time.Now().UTC().Format(time.StampMicro), client, length, a, err)
		}
	case a.slot != slotOf(client, l.slots):
		if l.strayed.Add(1) < 10 {
			l.t.Errorf("client %v: %+v, want slot %d", client, a, slotOf(client, l.slots))
		}
	}
}

// keptConn is a client's connection to a proxy. It makes no request twice.
type keptConn struct {
	net.Conn
	lines *bufio.Reader
}

func (c *keptConn) ask(address, request string) (a answer, err error) {
	if c.Conn == nil {
		if c.Conn, err = dialTo(netip.MustParseAddr("127.0.0.1"), address); err != nil {
			c.Conn = nil
			return a, err
		}
		c.lines = bufio.NewReader(c)
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(c.lines, nil)
	if err != nil {
		return a, err
	}
	if a, err = readAnswer(resp); resp.Close {
		c.close()
	}
	return a, err
}

func (c *keptConn) close() {
	if c.Conn != nil {
		c.Conn.Close()
		c.Conn = nil
	}
}

// TestHandBackSlotAddress: a connection to a slot's own address stays with its worker, whatever its requests say, and does
// not keep that from its end.
func TestHandBackSlotAddress(t *testing.T) {
	t.Parallel()
	const slots, slot = 3, 1
	flags := append([]string{"--behind-proxy"}, slotFlags...)
	for name, launch := range map[string]func(t *testing.T) *instance{
		"Go": func(t *testing.T) *instance { return start(t, slots, options{flags: flags}) },
		"Node": func(t *testing.T) *instance {
			return startNode(t, slots, readsBodies+`server.listen(PORT, '127.0.0.1')`, nodeOptions{flags: flags, change: onLoopback(t)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := launch(t)
			for generation := 1; generation <= 2; generation++ {
				conn, err := dialTo(proxyAt, b.atSlot(slot))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				p := &pool{conn, b, bufio.NewReader(conn)}
				for i := range 20 {
					if a := p.asks(pooledRequest(proxied(i), strings.Repeat("x", i%3))); a.slot != slot || a.generation != generation {
						t.Errorf("client %v: %+v, want slot %d, generation %d", proxied(i), a, slot, generation)
					}
				}
				b.signal(unix.SIGUSR2)
				b.awaitCount("reload finished", generation)
				b.awaitCount("worker exited", generation*slots) // it closes the connection, which is idle
			}
			if s := b.status(); *s.Totals.HandedBack != 0 {
				t.Errorf("totals %+v", s.Totals)
			}
		})
	}
}
