// Package proxies_test runs each configuration of this directory in the real proxy,
// before the real command, and tries what the configuration promises: each client stays
// in its slot, and nothing that it sends or receives is changed.
package proxies_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

const (
	clients     = 200
	connections = 3  // of each client
	parallel    = 10 // clients at the same time: a proxy that pools has connections to lend
	bodySize    = 1 << 20
	timeout     = time.Minute // bounds what takes milliseconds
)

// configuration is a file of this directory.
type configuration struct {
	file      string
	program   trial.Proxy
	flag      string // of handfast run
	websocket bool
}

// Flags that say how handfast finds the client.
const (
	byHeader = "--behind-proxy"
	byProxy  = "--proxy-protocol"
)

// trustedProxy is where the proxy connects from, and the test when it is one more proxy.
const trustedProxy = "127.0.0.1"

var configurations = []configuration{
	{"nginx.conf", trial.Nginx, byHeader, false},
	{"nginx-websocket.conf", trial.Nginx, byHeader, true},
	{"nginx-pool.conf", trial.Nginx, byHeader, true},
	{"haproxy-http.cfg", trial.HAProxy, byHeader, true},
	{"haproxy-pool.cfg", trial.HAProxy, byHeader, true},
	{"haproxy-send-proxy.cfg", trial.HAProxy, byProxy, true},
	{"haproxy-send-proxy-v2.cfg", trial.HAProxy, byProxy, true},
	{"apache.conf", trial.Apache, byHeader, true},
}

func TestConfigurations(t *testing.T) {
	for _, c := range configurations {
		t.Run(c.file, c.try)
	}
}

// TestNginxPool: from 1.29.7 on nginx keeps connections to an upstream block for other
// clients, if it is not told otherwise, and older versions do when they are told to.
func TestNginxPool(t *testing.T) {
	c := configuration{"nginx-websocket.conf", trial.Nginx, byHeader, true}
	c.program.Insert = append(slices.Clone(trial.Nginx.Insert), [2]string{"upstream handfast {", "keepalive 32;"})
	c.try(t)
}

// TestEveryFile: none is left out of the tables.
func TestEveryFile(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		tried := file.Name() == userID || slices.ContainsFunc(configurations, func(c configuration) bool { return c.file == file.Name() }) ||
			slices.ContainsFunc(seeds, func(s seed) bool { return s.file == file.Name() })
		if ext := filepath.Ext(file.Name()); ext != ".go" && ext != ".md" && !tried {
			t.Errorf("no test tries %s", file.Name())
		}
	}
}

func (c configuration) try(t *testing.T) {
	c.program.Need(t) // or skip
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	handfast, at := trial.BalanceWith(t, []string{c.flag, "--trusted-proxies", trustedProxy}, self)
	proxy, address := c.program.Start(t, c.file, at)
	t.Run("Direct", func(t *testing.T) { sticky(t, address, direct) })
	if c.flag == byHeader {
		t.Run("Forwarded", func(t *testing.T) {
			sticky(t, address, func(i int) client { return forwarded(i, new(http.Transport)) })
		})
		t.Run("OneConnection", func(t *testing.T) { oneConnection(t, address) })
		t.Run("OddMethod", func(t *testing.T) { oddMethod(t, address) })
	}
	t.Run("Body", func(t *testing.T) { body(t, address) })
	if c.websocket {
		t.Run("WebSocket", func(t *testing.T) { webSocket(t, address) })
	}
	proxy.StopWith(c.program.Stop)
	handfast.Stop()
}

// client is someone on the other side of the proxy.
type client struct {
	*http.Client
	addr netip.Addr
	slot int
}

func newClient(addr netip.Addr, s sender) client {
	return client{
		Client: &http.Client{Transport: s, Timeout: timeout},
		addr:   addr,
		slot:   hash.DefaultConfig().Key(addr).Slot(trial.Workers),
	}
}

// direct returns the i-th client that connects from an address of its own, and pretends
// to be somebody else.
func direct(i int) client {
	addr := netip.AddrFrom4([4]byte{127, 1, byte(i / 250), byte(1 + i%250)})
	pretended := netip.MustParseAddr("198.51.100.1")
	return newClient(addr, sender{trial.ClientAt(addr).Transport.(*http.Transport), pretended, i%2 == 1})
}

// forwarded returns the i-th client of another proxy, which has these connections.
func forwarded(i int, connections *http.Transport) client {
	addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
	if i%2 == 1 {
		addr = netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", i))
	}
	return newClient(addr, sender{connections, addr, i%3 == 1})
}

// sender says in each request for whom it is.
type sender struct {
	*http.Transport
	client  netip.Addr
	upgrade bool // asks for a WebSocket where there is none, and is declined
}

func (s sender) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Forwarded-For", s.client.String())
	if s.upgrade && r.Method == http.MethodGet && r.Header.Get("Upgrade") == "" {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "websocket")
		r.Header.Set("Sec-WebSocket-Version", "13")
		r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==") // of RFC 6455, section 1.2
	}
	return s.Transport.RoundTrip(r)
}

// wantSlot checks what every answer of the worker says.
func (c client) wantSlot(t *testing.T, response *http.Response) {
	t.Helper()
	if got := response.Header.Get("Slot"); got != strconv.Itoa(c.slot) {
		t.Errorf("client %s: slot %q, want %d", c.addr, got, c.slot)
	}
}

// placements is which worker fills which slot, and how many clients were there.
type placements struct {
	mu      sync.Mutex
	pids    [trial.Workers]int
	clients [trial.Workers]int
}

// want checks an answer: a client is in its slot, and in a slot is always the same worker.
func (p *placements) want(t *testing.T, c client, address string) {
	t.Helper()
	got, err := trial.Get(c.Client, address)
	if err != nil {
		t.Errorf("client %s: %v", c.addr, err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pids[c.slot] == 0 {
		p.pids[c.slot] = got.PID
	}
	if want := (trial.Answer{Slot: c.slot, PID: p.pids[c.slot], Generation: 1, Client: c.addr.String()}); got != want {
		t.Errorf("client %s: %+v, want %+v", c.addr, got, want)
	}
}

func (p *placements) count(c client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients[c.slot]++
}

// sticky: each client is always in one slot, the one that package hash computes, and the
// worker knows its address. There are two requests on each connection, since
// HAProxy's http-reuse lends connections from the second on.
func sticky(t *testing.T, address string, clientOf func(i int) client) {
	var placed placements
	var all sync.WaitGroup
	for first := range parallel {
		all.Go(func() {
			for i := first; i < clients && !t.Failed(); i += parallel {
				client := clientOf(i)
				placed.count(client)
				for range connections {
					placed.want(t, client, address)
					placed.want(t, client, address)
					client.CloseIdleConnections()
				}
			}
		})
	}
	all.Wait()
	for slot, n := range placed.clients {
		if fair := clients / trial.Workers; !t.Failed() && (n < fair/2 || n > fair*2) {
			t.Errorf("%d clients in slot %d, want about %d", n, slot, fair)
		}
	}
}

// oddMethod: a request that no server knows, but proxies pass on, does not move its client.
func oddMethod(t *testing.T, address string) {
	for i := range 20 {
		c := direct(i)
		defer c.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), strings.Repeat("M", 40), "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := c.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		c.wantSlot(t, response)
	}
}

// oneConnection: the other proxy sends the requests of all clients over one
// connection. Each goes to its client's slot nevertheless.
func oneConnection(t *testing.T, address string) {
	var placed placements
	connection := &http.Transport{MaxConnsPerHost: 1}
	defer connection.CloseIdleConnections()
	for i := 0; i < clients && !t.Failed(); i++ {
		placed.want(t, forwarded(i, connection), address)
	}
}

// body: a large request arrives as it was sent.
func body(t *testing.T, address string) {
	body := make([]byte, bodySize)
	rand.NewChaCha8([32]byte{}).Read(body)
	client := direct(1)
	defer client.CloseIdleConnections()
	response, err := client.Post("http://"+address+"/sum", "application/octet-stream", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); string(got) != want || err != nil {
		t.Errorf("status %s, %q, error %v; want the sum %s", response.Status, got, err, want)
	}
	client.wantSlot(t, response)
}

// webSocket: messages go to the client's slot and come back.
func webSocket(t *testing.T, address string) {
	for i := range 2 {
		client := direct(i)
		defer client.CloseIdleConnections()
		conn, response, err := websocket.Dial(t.Context(), "ws://"+address+"/ws", &websocket.DialOptions{
			HTTPClient: client.Client,
			HTTPHeader: http.Header{"Origin": {"http://" + address}}, // as browsers do; it must be Host's
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		client.wantSlot(t, response)
		conn.SetReadLimit(messageLimit)
		for _, want := range []string{"hello", "", strings.Repeat("0123456789abcdef", 4096), "bye"} {
			if err := conn.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
				t.Fatal(err)
			}
			if kind, got, err := conn.Read(t.Context()); kind != websocket.MessageText || string(got) != want || err != nil {
				t.Fatalf("echo of %d bytes: %v of %d bytes, %v", len(want), kind, len(got), err)
			}
		}
		if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Error(err)
		}
	}
}

// TestReadmeShows: what README.md shows of a configuration is in the file that is tried.
func TestReadmeShows(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for language, file := range map[string]string{"nginx": "nginx-websocket.conf", "haproxy": "haproxy-http.cfg", "apache": "apache.conf"} {
		tried, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, block, found := strings.Cut(string(readme), "\n```"+language+"\n")
		block, _, _ = strings.Cut(block, "\n```\n")
		if !found {
			t.Errorf("README.md shows no configuration of %s", language)
		}
		for line := range strings.Lines(block) {
			if line = strings.TrimSpace(line); !strings.Contains(string(tried), line) {
				t.Errorf("README.md: %q is not in %s", line, file)
			}
		}
	}
}
