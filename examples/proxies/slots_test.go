package proxies_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

// slotted is a handfast whose slots have addresses of their own.
type slotted struct {
	*trial.Process
	t       *testing.T
	program string
	admin   string
	own     hash.SlotAddresses
	port    uint16
}

// startSlotted runs workers in slots with addresses of their own. With any, they are servers that listen by themselves.
func startSlotted(t *testing.T, any bool, flags ...string) *slotted {
	t.Helper()
	dir, err := os.MkdirTemp("", "handfast")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &slotted{t: t, program: trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), admin: filepath.Join(dir, "admin.sock")}
	network := netip.AddrFrom4([4]byte{127, byte(64 + rand.IntN(64)), byte(rand.IntN(256)), 0})
	h.own = hash.SlotAddresses{Prefix: netip.PrefixFrom(network, 28)}
	h.port = freePort(t)
	listen := fmt.Sprintf("0.0.0.0:%d", h.port)
	args := append([]string{"run", "--admin", h.admin, "--listen", listen, "--slot-address", h.own.String(), "--workers", strconv.Itoa(trial.Workers), "--log-json"}, flags...)
	if any {
		args = append(args, "--worker-link", "any", "--env", listensAt+"="+listen)
	}
	h.Process = trial.Start(t, h.program, append(args, "--", self)...)
	h.AwaitReady(trial.Workers)
	return h
}

// freePort returns a port on which nobody listens, and which the kernel gives to nobody.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		port := uint16(10_000 + rand.IntN(20_000))
		if ln, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			ln.Close()
			if trial.Reserve(int(port)) {
				return port
			}
		}
	}
	t.Fatal("no port is free")
	return 0
}

// at is a slot's address.
func (h *slotted) at(slot int) string { return netip.AddrPortFrom(h.own.Of(slot), h.port).String() }

// ask runs a command of handfast, and returns what it prints.
func (h *slotted) ask(command string, args ...string) string {
	h.t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(h.program, append([]string{command, "--admin", h.admin}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("handfast %s %q: %v\n%s", command, args, err, stderr.String())
	}
	return string(out)
}

// crowd are clients before a proxy, and the slots in which they belong.
type crowd struct {
	t       *testing.T
	address string // of the proxy
	members [clients]member
}

// member is one of them.
type member struct {
	*http.Client
	home   int
	from   atomic.Uint32 // with a cookie it comes from another address each time
	header string        // names it
}

// newCrowd returns clients that a proxy knows by their address, a cookie, or the header X-User.
func newCrowd(t *testing.T, address, by string) *crowd {
	c := &crowd{t: t, address: address}
	for i := range c.members {
		c.members[i].init(i, by)
	}
	t.Cleanup(c.closeIdle)
	return c
}

func (m *member) init(i int, by string) {
	m.from.Store(uint32(i))
	m.home = -1
	m.Client = &http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		from := m.from.Load()
		if by != "address" {
			from = m.from.Add(1)
		}
		// ip_hash takes three numbers of an address.
		source := netip.AddrFrom4([4]byte{127, byte(1 + from>>8%50), byte(from), 9})
		return (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}).DialContext(ctx, network, address)
	}}}
	switch by {
	case "cookie":
		m.Jar, _ = cookiejar.New(nil)
	case "header:X-User":
		m.header = fmt.Sprintf("user %d", i)
	}
}

func (c *crowd) closeIdle() {
	for i := range c.members {
		c.members[i].CloseIdleConnections()
	}
}

// do sends a member's request, and returns the slot that answered, and what.
func (c *crowd) do(i int, method, path, body string) (slot, status int, text string, err error) {
	m := &c.members[i]
	request, err := http.NewRequest(method, "http://"+c.address+path, strings.NewReader(body))
	if err != nil {
		return 0, 0, "", err
	}
	if m.header != "" {
		request.Header.Set("X-User", m.header)
	}
	response, err := m.Do(request)
	if err != nil {
		return 0, 0, "", err
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, 0, "", err
	}
	slot, err = strconv.Atoi(response.Header.Get("Slot"))
	if err != nil {
		return 0, 0, "", fmt.Errorf("status %s, no slot: %s", response.Status, all)
	}
	if forwarded := response.Header.Get("Forwarded"); !strings.HasPrefix(forwarded, "127.") {
		err = fmt.Errorf("X-Forwarded-For and X-Forwarded-Proto are %q", forwarded)
	}
	return slot, response.StatusCode, string(all), err
}

// each runs f for all members, some at a time.
func (c *crowd) each(f func(i int)) {
	c.t.Helper()
	var all sync.WaitGroup
	for first := range parallel {
		all.Go(func() {
			for i := first; i < clients && !c.t.Failed(); i += parallel {
				f(i)
			}
		})
	}
	all.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// settle finds out where everybody belongs: always in one slot, over connections, and in each about as many.
func (c *crowd) settle(slots int) {
	c.t.Helper()
	c.each(func(i int) {
		for round := range 4 {
			slot, status, _, err := c.do(i, "GET", "/", "")
			if err != nil || status != http.StatusOK {
				c.t.Errorf("client %d: status %d, %v", i, status, err)
				return
			}
			if round == 0 {
				c.members[i].home = slot
			}
			if slot != c.members[i].home {
				c.t.Errorf("client %d: slot %d, and before %d", i, slot, c.members[i].home)
			}
			if round%2 == 1 {
				c.members[i].CloseIdleConnections()
			}
		}
	})
	count := make([]int, slots)
	for i := range c.members {
		count[c.members[i].home]++
	}
	for slot, n := range count {
		if fair := clients / slots; n < fair/2 || n > 2*fair {
			c.t.Errorf("slot %d has %d clients, want about %d: %v", slot, n, fair, count)
		}
	}
}

// wantHome: everybody is at home, or else in the other slot. It returns how many those are.
func (c *crowd) wantHome(other int) int {
	c.t.Helper()
	var moved atomic.Int32
	c.closeIdle()
	c.each(func(i int) {
		slot, status, _, err := c.do(i, "GET", "/", "")
		switch {
		case err != nil || status != http.StatusOK:
			c.t.Errorf("client %d: status %d, %v", i, status, err)
		case slot == other && slot != c.members[i].home:
			moved.Add(1)
		case slot != c.members[i].home:
			c.t.Errorf("client %d: slot %d, want %d", i, slot, c.members[i].home)
		}
	})
	return int(moved.Load())
}

// longPoll: a message from a client's second connection reaches its first one, which waits in the same worker.
func (c *crowd) longPoll(i int) {
	c.t.Helper()
	answer := make(chan string, 1)
	path := fmt.Sprintf("/poll/%d", i)
	go func() {
		for {
			_, status, text, err := c.do(i, "GET", path, "")
			if err != nil || status == http.StatusOK {
				answer <- fmt.Sprint(text, err)
				return
			}
		}
	}()
	trial.Eventually(c.t, "a message is taken", func() bool {
		_, status, _, err := c.do(i, "POST", path, "hello")
		if err != nil {
			c.t.Fatal(err)
		}
		return status == http.StatusOK
	})
	if got := <-answer; got != "hello<nil>" {
		c.t.Errorf("client %d: %q", i, got)
	}
}

// webSocket opens one for a member.
func (c *crowd) webSocket(i int) *websocket.Conn {
	c.t.Helper()
	m := &c.members[i]
	conn, response, err := websocket.Dial(c.t.Context(), "ws://"+c.address+"/ws", &websocket.DialOptions{
		HTTPClient: m.Client,
		HTTPHeader: http.Header{"X-User": {m.header}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.CloseNow() })
	if got := response.Header.Get("Slot"); got != strconv.Itoa(m.home) {
		c.t.Errorf("client %d: WebSocket in slot %s, want %d", i, got, m.home)
	}
	return conn
}

// wantEcho: a WebSocket is alive.
func wantEcho(t *testing.T, conns []*websocket.Conn) {
	t.Helper()
	for i, conn := range conns {
		text := fmt.Sprintf("message %d", i)
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != text {
			t.Fatalf("%q, %v, want %q", got, err, text)
		}
	}
}

// breath is what a client under load takes between two requests: proxy and workers are to start meanwhile.
const breath = 10 * time.Millisecond

// load sends requests until stop, which returns how many there were.
func (c *crowd) load(other int) (stop func() int64) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var requests atomic.Int64
	var all sync.WaitGroup
	for first := range 4 {
		all.Go(func() {
			for i := first; ctx.Err() == nil; i = (i + 4) % clients {
				slot, status, _, err := c.do(i, "GET", "/", "")
				if err != nil || status != http.StatusOK || slot != c.members[i].home && slot != other {
					c.t.Errorf("under load: client %d of slot %d: slot %d, status %d, %v", i, c.members[i].home, slot, status, err)
					return
				}
				requests.Add(1)
				time.Sleep(breath)
			}
		})
	}
	return func() int64 { cancel(); all.Wait(); return requests.Load() }
}

// TestProxyConfig: what handfast proxy-config prints works in the proxy: clients stay, by whatever they are known, in a
// reload and while slots come and go, WebSockets and long polls as well, and no request fails.
func TestProxyConfig(t *testing.T) {
	for _, p := range []struct {
		name    string
		program trial.Proxy
		by      []string
		closes  bool // it closes WebSockets when it reloads its configuration
	}{
		{"nginx", trial.Nginx, []string{"address", "cookie", "header:X-User"}, false},
		{"haproxy", trial.HAProxyMaster, []string{"address", "cookie", "header:X-User"}, false},
		{"apache", trial.Apache, []string{"address", "cookie", "header:X-User"}, false},
		{"caddy", trial.Caddy, []string{"address", "cookie", "header:X-User"}, true},
		{"traefik", trial.Traefik, []string{"address", "cookie"}, false},
	} {
		for i, by := range p.by {
			t.Run(p.name+"/"+by, func(t *testing.T) {
				t.Parallel()
				p.program.Need(t)
				tryProxyConfig(t, p.program, p.name, by, i == 0, p.closes)
			})
		}
	}
}

// tryProxyConfig tries one way of knowing clients; with any, the workers are servers that know nothing of handfast.
func tryProxyConfig(t *testing.T, program trial.Proxy, name, by string, any, closes bool) {
	h := startSlotted(t, any)
	print := func(more ...string) string {
		return fmt.Sprintf(program.Whole, h.ask("proxy-config", append(more, "--by", by, name)...))
	}
	front := program.Run(t, print())
	c := newCrowd(t, front.Address, by)
	trial.Eventually(t, "the proxy has read its configuration", func() bool {
		_, _, _, err := c.do(0, "GET", "/", "")
		return err == nil
	})
	c.settle(trial.Workers)
	var sockets []*websocket.Conn
	for i := range 6 {
		sockets = append(sockets, c.webSocket(i))
		c.longPoll(clients - 1 - i)
	}

	const fourth = trial.Workers
	stop := c.load(fourth)
	var polls sync.WaitGroup
	for i := range 6 { // which are answered by workers that are replaced meanwhile
		polls.Go(func() {
			if _, status, _, err := c.do(clients/2+i, "GET", fmt.Sprintf("/poll/%d", clients/2+i), ""); err != nil || status != http.StatusNoContent {
				t.Errorf("poll during the reload: status %d, %v", status, err)
			}
		})
	}
	h.ask("reload")
	polls.Wait()
	wantEcho(t, sockets)
	c.wantHome(-1)

	h.ask("scale", "4")
	h.AwaitReady(2*trial.Workers + 1)
	front.Reload(print())
	moved, few, many := 0, 1, clients*4/10
	if by != "cookie" {
		few = clients / 8
	}
	trial.Eventually(t, "the fourth slot has its clients", func() bool { moved = c.fourth(by, fourth); return moved >= few })
	if moved > many {
		t.Errorf("%d of %d clients moved to the fourth slot, want about a fourth", moved, clients)
	}
	if !closes {
		wantEcho(t, sockets)
	}

	front.Reload(print("--workers", "3"))
	trial.Eventually(t, "the fourth slot has no clients", func() bool { return c.fourth(by, fourth) == 0 })
	h.ask("scale", "3")
	c.wantHome(-1)
	if n := stop(); n < clients {
		t.Errorf("only %d requests meanwhile", n)
	} else {
		t.Logf("%d requests meanwhile, %d clients moved", n, moved)
	}
	for _, conn := range sockets {
		conn.CloseNow()
	}
	c.closeIdle()
	front.StopWith(program.Stop)
	h.Stop()
}

// TestProxyConfigClosedConnection: a request that meets a connection of the pool which its worker closes instead of answering
// goes to the same slot again, if it may be repeated; if not, no worker gets it twice. Apache repeats none.
func TestProxyConfigClosedConnection(t *testing.T) {
	for _, p := range []struct {
		name    string
		program trial.Proxy
		repeats bool
	}{
		{"nginx", trial.Nginx, true},
		{"haproxy", trial.HAProxyMaster, true},
		{"apache", trial.Apache, false},
		{"caddy", trial.Caddy, true},
		{"traefik", trial.Traefik, true},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			p.program.Need(t)
			var s oneRequestServers
			own, port := s.listen(t)
			out, err := exec.Command(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), "proxy-config", p.name,
				"--slot-address", own.String(), "--workers", strconv.Itoa(trial.Workers), "--listen", fmt.Sprintf(":%d", port)).Output()
			if err != nil {
				t.Fatal(err)
			}
			front := p.program.Run(t, fmt.Sprintf(p.program.Whole, out))
			c := newCrowd(t, front.Address, "address")
			posts := int64(0)
			for i := range 30 {
				for round := range 3 {
					posts++
					c.do(i, "POST", "/", "once") // leaves a connection in the pool, or fails
					c.closeIdle()                // so that no client repeats it by itself
					slot, status, _, err := c.do(i, "GET", "/", "")
					if !p.repeats {
						continue
					}
					if err != nil || status != http.StatusOK {
						t.Errorf("client %d: status %d, %v", i, status, err)
					}
					if round == 0 {
						c.members[i].home = slot
					}
					if slot != c.members[i].home {
						t.Errorf("client %d: slot %d, want %d", i, slot, c.members[i].home)
					}
				}
			}
			if n := s.posts.Load(); n > posts {
				t.Errorf("%d POST requests arrived of %d", n, posts)
			}
			if s.unanswered.Load() == 0 {
				t.Error("no request met such a connection")
			}
			c.closeIdle()
			front.StopWith(p.program.Stop)
		})
	}
}

// oneRequestServers are in the place of slots. They answer the first request on each connection, and close it when another one comes.
type oneRequestServers struct {
	posts, unanswered atomic.Int64
}

func (s *oneRequestServers) listen(t *testing.T) (own hash.SlotAddresses, port uint16) {
	t.Helper()
	var listeners []net.Listener
	trial.Eventually(t, "a port that nobody takes meanwhile", func() bool {
		network := netip.AddrFrom4([4]byte{127, byte(64 + rand.IntN(64)), byte(rand.IntN(256)), 0})
		own, port = hash.SlotAddresses{Prefix: netip.PrefixFrom(network, 28)}, freePort(t)
		for slot := range trial.Workers {
			ln, err := net.Listen("tcp", netip.AddrPortFrom(own.Of(slot), port).String())
			if err != nil {
				for _, ln := range listeners {
					ln.Close()
				}
				listeners = nil
				return false
			}
			listeners = append(listeners, ln)
		}
		return true
	})
	for slot, ln := range listeners {
		t.Cleanup(func() { ln.Close() })
		go s.serve(ln, slot)
	}
	return own, port
}

func (s *oneRequestServers) serve(ln net.Listener, slot int) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			reader := bufio.NewReader(conn)
			for n := range 2 {
				request, err := http.ReadRequest(reader)
				if err != nil {
					return
				}
				io.Copy(io.Discard, request.Body)
				if request.Method == http.MethodPost {
					s.posts.Add(1)
				}
				if n == 1 {
					s.unanswered.Add(1)
					return
				}
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nSlot: %d\r\nForwarded: %s\r\nContent-Length: 0\r\n\r\n", slot, request.Header.Get("X-Forwarded-For"))
			}
		}()
	}
}

// fourth returns how many clients are in the fourth slot. Those that have a cookie do not move: of them so many new ones are asked.
func (c *crowd) fourth(by string, slot int) (n int) {
	c.t.Helper()
	if by != "cookie" {
		return c.wantHome(slot)
	}
	if moved := c.wantHome(-1); moved > 0 {
		c.t.Fatalf("%d clients with a cookie moved", moved)
	}
	fresh := newCrowd(c.t, c.address, by)
	defer fresh.closeIdle()
	fresh.each(func(i int) {
		if i < 40 {
			if _, _, _, err := fresh.do(i, "GET", "/", ""); err != nil {
				c.t.Error(err)
			}
		}
	})
	return fresh.inSlot(40, slot)
}

// inSlot returns how many of the first members are in a slot.
func (c *crowd) inSlot(members, slot int) (n int) {
	for i := range members {
		if at, _, _, err := c.do(i, "GET", "/", ""); err != nil {
			c.t.Error(err)
		} else if at == slot {
			n++
		}
	}
	return n
}

// seed is a configuration of several servers, app01 to app03, as people have them: slots can stand for those.
type seed struct {
	file    string
	program trial.Proxy
	by      string
}

var seeds = []seed{
	{"slots-nginx-ip-hash.conf", trial.Nginx, "address"},
	{"slots-nginx-cookie.conf", trial.Nginx, "cookie"},
	{"slots-apache.conf", trial.Apache, "cookie"},
	{"slots-haproxy.cfg", trial.HAProxy, "cookie"},
}

// TestSeveralServers: configurations of several servers work as they are when slots are these servers. The test
// has no /etc/hosts of its own: it writes addresses in the place of the names.
func TestSeveralServers(t *testing.T) {
	for _, s := range seeds {
		t.Run(s.file, func(t *testing.T) {
			t.Parallel()
			s.program.Need(t)
			text, err := os.ReadFile(s.file)
			if err != nil {
				t.Fatal(err)
			}
			var flags []string
			if s.file == "slots-nginx-cookie.conf" {
				flags = []string{"--env", setsCookie + "=1"}
			}
			h := startSlotted(t, true, flags...)
			config := string(text)
			for slot := range trial.Workers {
				config = strings.ReplaceAll(config, fmt.Sprintf("app%02d:8080", slot+1), h.at(slot))
			}
			front := s.program.Run(t, config)
			c := newCrowd(t, front.Address, s.by)
			c.settle(trial.Workers)
			var sockets []*websocket.Conn
			for i := range 6 {
				sockets = append(sockets, c.webSocket(i))
				c.longPoll(clients - 1 - i)
			}
			stop := c.load(-1)
			h.ask("reload")
			wantEcho(t, sockets)
			c.wantHome(-1)
			if n := stop(); n == 0 {
				t.Error("no request meanwhile")
			}
			for _, conn := range sockets {
				conn.CloseNow()
			}
			c.closeIdle()
			front.StopWith(s.program.Stop)
			h.Stop()
		})
	}
}
