package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// soon is how long a probe waits: less than any timeout of the server's.
const soon = time.Second

// hold opens as many connections as there may be, and has each ask for text, if that is not empty, and read
// an answer, if it is a whole request. They are open until the end of the test.
func hold(t *testing.T, addr, text string, answered bool) (conns []net.Conn) {
	t.Helper()
	for range maxConnections {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		io.WriteString(conn, text)
		if answered {
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
		}
		conns = append(conns, conn)
	}
	return conns
}

// TestIdleConnections: a client that holds all connections and asks for nothing keeps nobody out, and the longest
// idle one goes.
//
// Row B3: /healthz and /metrics did not answer for a minute.
func TestIdleConnections(t *testing.T) {
	for name, v := range map[string]struct {
		text     string
		answered bool
	}{
		"silent":     {"", false},
		"slow":       {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", false},
		"keep-alive": {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			ln, _ := serve(t, newFake(1), Address{"tcp", "127.0.0.1:0"})
			conns := hold(t, ln.Addr().String(), v.text, v.answered)
			probe := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
			for range 3 {
				resp, err := probe.Get(fmt.Sprintf("http://%v/healthz", ln.Addr()))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
			ended := make(chan int, maxConnections)
			longest := conns[:1]
			if v.answered { // a client may read its answer long before the server's goroutine finds it idle
				longest = conns[:maxConnections-1]
			}
			for i, conn := range longest {
				go func() { io.Copy(io.Discard, conn); ended <- i }()
			}
			fdtest.Receive(t, "the end of the longest idle one", ended)
			conns[maxConnections-1].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, err := conns[maxConnections-1].Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("the last one reads %d, %v, want to wait", n, err)
			}
		})
	}
}

// slowMaster answers Ping when it may.
type slowMaster struct {
	*fake
	asked chan struct{}
	may   chan struct{}
}

func (m slowMaster) Ping(context.Context) error {
	m.asked <- struct{}{}
	<-m.may
	return nil
}

// TestBusyConnections: whose request is being answered stays, and others wait for that.
func TestBusyConnections(t *testing.T) {
	m := slowMaster{newFake(1), make(chan struct{}), make(chan struct{})}
	ln, _ := serve(t, m, Address{"tcp", "127.0.0.1:0"})
	hold(t, ln.Addr().String(), "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", false)
	for range maxConnections {
		<-m.asked
	}
	late, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	late.SetDeadline(time.Now().Add(patience))
	io.WriteString(late, "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	m.may <- struct{}{}
	if resp, err := http.ReadResponse(bufio.NewReader(late), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", resp, err)
	}
	close(m.may)
}
