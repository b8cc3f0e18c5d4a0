package worker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

func testRules(t testing.TB) forwarded.Rules {
	t.Helper()
	trusted, err := forwarded.ParseTrust(forwarded.DefaultTrust)
	if err != nil {
		t.Fatal(err)
	}
	return forwarded.Rules{Header: "X-Forwarded-For", Trusted: trusted}
}

// TestClientOf: the client of a request is the master's.
func TestClientOf(t *testing.T) {
	rules := testRules(t)
	for _, c := range []struct {
		rules         forwarded.Rules
		remote, lines string
		want          string
	}{
		{rules, "127.0.0.1:5", "203.0.113.1", "203.0.113.1"},
		{rules, "127.0.0.1:5", "203.0.113.1|203.0.113.2, 10.0.0.1", "203.0.113.2"},
		{rules, "127.0.0.1:5", "", "127.0.0.1"},
		{rules, "[::ffff:127.0.0.1]:5", "", "127.0.0.1"},
		{rules, "198.51.100.1:5", "203.0.113.1", "198.51.100.1"},
		{forwarded.Rules{}, "127.0.0.1:5", "203.0.113.1", "127.0.0.1"},
		{rules, "@", "203.0.113.1", "invalid IP"}, // a Unix socket's peer
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		if c.lines != "" {
			r.Header["X-Forwarded-For"] = strings.Split(c.lines, "|")
		}
		if got := clientOf(&c.rules, hash.DefaultConfig(), r).Addr.String(); got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.remote, c.lines, got, c.want)
		}
	}
	// A Unix socket's peer is a trusted proxy if the connection is of the master's, and of no other server in this process.
	for at, want := range map[net.Addr]string{unixLocal: "203.0.113.1", &net.UnixAddr{Net: "unix"}: "invalid IP"} {
		r := httptest.NewRequest("GET", "/", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, at))
		r.RemoteAddr = unixPeer.String()
		r.Header.Set("X-Forwarded-For", "203.0.113.1")
		if got := clientOf(&rules, hash.DefaultConfig(), r).Addr.String(); got != want {
			t.Errorf("at %v: %s, want %s", at, got, want)
		}
	}
	// Without a master there are no rules.
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "127.0.0.1:5"
	r.Header.Set("X-Forwarded-For", "203.0.113.1")
	if got := Client(r); got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("without a master the client is %v", got)
	}
}

// apart is a server whose clients are kept apart, and what it logs.
func apart(t *testing.T, rules forwarded.Rules) (address string, logged func() string) {
	t.Helper()
	var mu sync.Mutex
	var text strings.Builder
	type contextKey struct{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Context().Value(contextKey{}).(string))
	}))
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, contextKey{}, "ours")
	}
	srv.Config.ErrorLog = log.New(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.Write(p)
	}), "", 0)
	keepApart(srv.Config, rules, hash.DefaultConfig())
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestKeepClientsApart: a request of another client than the connection's first one is
// answered, and with "Connection: close"; it is logged once.
func TestKeepClientsApart(t *testing.T) {
	const one, other = "X-Forwarded-For: 203.0.113.1\r\n", "X-Forwarded-For: 203.0.113.2\r\n"
	byAddress := testRules(t)
	byKey := testRules(t)
	byKey.Keys = forwarded.Keys{{Kind: forwarded.ByHeader, Name: "X-Session"}}
	for _, c := range []struct {
		what     string
		rules    forwarded.Rules
		requests []string
		close    bool // the last answer ends the connection
	}{
		{"one client", byAddress, []string{one, one, one}, false},
		{"another client", byAddress, []string{one, one, other}, true},
		{"no client", byAddress, []string{one, ""}, true},
		{"the same, differently", byAddress, []string{one, "x-forwarded-for: 198.51.100.1, 203.0.113.1:99, 10.0.0.1\r\n"}, false},
		{"the same /64", byAddress, []string{"X-Forwarded-For: 2001:db8::1\r\n", "X-Forwarded-For: 2001:db8::2\r\n"}, false},
		{"another /64", byAddress, []string{"X-Forwarded-For: 2001:db8::1\r\n", "X-Forwarded-For: 2001:db8:0:1::1\r\n"}, true},
		{"the same session elsewhere", byKey, []string{one + "X-Session: a\r\n", other + "X-Session: a\r\n"}, false},
		{"another session", byKey, []string{one + "X-Session: a\r\n", one + "X-Session: b\r\n"}, true},
		{"the last session counts", byKey, []string{one + "X-Session: a\r\n", one + "X-Session: b\r\nX-Session: a\r\n"}, false},
		{"no proxy", forwarded.Rules{}, []string{one, other, one}, false},
	} {
		address, logged := apart(t, c.rules)
		for range 2 {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			reader := bufio.NewReader(conn)
			for i, lines := range c.requests {
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n%s\r\n", lines)
				resp, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatalf("%s: request %d: %v", c.what, i, err)
				}
				if body, _ := io.ReadAll(resp.Body); string(body) != "ours" {
					t.Errorf("%s: answer %q: the server's own ConnContext is lost", c.what, body)
				}
				if want := c.close && i == len(c.requests)-1; resp.Close != want {
					t.Errorf("%s: request %d: closes: %v, want %v", c.what, i, resp.Close, want)
				}
			}
		}
		if n, want := strings.Count(logged(), "several clients"), map[bool]int{true: 1}[c.close]; n != want {
			t.Errorf("%s: logged %d times, want %d: %s", c.what, n, want, logged())
		}
	}
}
