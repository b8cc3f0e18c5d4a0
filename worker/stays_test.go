package worker

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestLookStaysEncrypted: what the master cannot read either stays where it is: TLS in the worker, and HTTP/2, whoever
// the clients are.
func TestLookStaysEncrypted(t *testing.T) {
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	unused := httptest.NewTLSServer(nil) // has a certificate
	defer unused.Close()
	certificates := unused.TLS.Certificates
	for name, v := range map[string]struct {
		tls       *tls.Config
		protocols *http.Protocols
		proto     string
	}{
		"TLS":              {&tls.Config{Certificates: certificates}, nil, "HTTP/1.1"},
		"HTTP/2, over TLS": {&tls.Config{Certificates: certificates, NextProtos: []string{"h2"}}, nil, "HTTP/2.0"},
		"h2c":              {nil, h2c, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer), TLSConfig: v.tls, Protocols: v.protocols, ErrorLog: log.New(io.Discard, "", 0)})
			dialed := 0
			client := &http.Client{Transport: &http.Transport{
				DialContext:       func(context.Context, string, string) (net.Conn, error) { dialed++; return p.dial(0), nil },
				TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
				Protocols:         v.protocols,
				ForceAttemptHTTP2: v.protocols == nil && v.proto == "HTTP/2.0",
			}, Timeout: fdtest.Patience}
			defer client.CloseIdleConnections()
			scheme := "http"
			if v.tls != nil {
				scheme = "https"
			}
			const requests = 6
			for i := range requests {
				req, err := http.NewRequest(http.MethodPost, scheme+"://test/path", strings.NewReader("body"))
				fdtest.Check(t, err)
				req.Header.Set("X-Forwarded-For", clientOfSlot(i%2))
				resp, err := client.Do(req)
				fdtest.Check(t, err)
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != `/path "body" <nil>` || resp.Proto != v.proto {
					t.Errorf("request %d by %s: %q, %v", i, resp.Proto, body, err)
				}
			}
			if n := len(p.back); n > 0 || dialed != 1 {
				t.Errorf("%d connections were handed back, %d made", n, dialed)
			}
		})
	}
}

// TestLookUnreadBody: a body that the handler does not read is not taken for the next request. Of a short one the server reads the
// rest itself, before it answers (net/http, maxPostHandlerReadBytes), and of a long one it ends the connection.
func TestLookUnreadBody(t *testing.T) {
	for name, length := range map[string]int{"short": 100, "beyond the server's buffer": 20_000, "long": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })})
			proxy := p.dial(0)
			r := bufio.NewReader(proxy)
			body := strings.Repeat(request(1, "/body", ""), length/60+1)[:length]
			go io.WriteString(proxy, request(0, "/first", "Content-Length: "+strconv.Itoa(length)+"\r\n\r\n")+body)
			if closes := reads(t, r, "/first").Close; closes != (length == 1<<20) {
				t.Errorf("the answer ends the connection: %v", closes)
			} else if closes {
				if n := len(p.back); n > 0 {
					t.Errorf("%d connections were handed back", n)
				}
				return
			}
			second := request(1, "/second", "")
			io.WriteString(proxy, second)
			unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, second)
		})
	}
}

// TestLookExpect: a request that waits for leave to send its body gets it once, from whoever serves it.
func TestLookExpect(t *testing.T) {
	p := newPool(t, &http.Server{Handler: http.HandlerFunc(answer)})
	for slot := range 2 {
		proxy := p.dial(0)
		r := bufio.NewReader(proxy)
		io.WriteString(proxy, request(slot, "/first", ""))
		reads(t, r, `/first "" <nil>`)
		second := request(slot, "/second", "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		io.WriteString(proxy, second)
		if slot == 1 {
			unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, second)
			continue
		}
		if line, err := r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		r.ReadString('\n')
		io.WriteString(proxy, "body")
		reads(t, r, `/second "body" <nil>`)
		io.WriteString(proxy, request(1, "/third", ""))
		unread(t, fdtest.Receive(t, "what is handed back", p.back), proxy, request(1, "/third", ""))
	}
}

// TestLookCosts: a request that stays costs one peek more than a read, and no ordinary system call, of which a read would be one.
func TestLookCosts(t *testing.T) {
	client, c := lookedAt(t)
	peeks, drops := 0, 0
	peek, drop := c.look.peek, c.look.drop
	c.look.peek = func(fd uintptr) bool { peeks++; return peek(fd) }
	c.look.drop = func(fd uintptr) { drops++; drop(fd) }
	buffer := make([]byte, 4096)
	const requests = 10
	for range requests {
		if _, err := client.Write([]byte(request(0, "/", ""))); err != nil {
			t.Fatal(err)
		}
		for _, call := range fdtest.OrdinaryCalls(t, func() {
			c.ExpectRequest()
			if _, err := c.Read(buffer); err != nil {
				t.Error(err)
			}
		}) {
			t.Error(call)
		}
	}
	if peeks != requests || drops != requests {
		t.Errorf("%d requests, %d peeks, %d times bytes were taken", requests, peeks, drops)
	}
}
