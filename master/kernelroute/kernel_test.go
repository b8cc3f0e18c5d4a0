package kernelroute

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waitingTime is how long clients wait in these tests.
const waitingTime = 300 * time.Millisecond

// call connects, and returns what the answer begins with and how long that took.
func call(t *testing.T, to string) (answer string, took time.Duration) {
	began := time.Now()
	conn, err := net.Dial("tcp", to)
	if err != nil {
		t.Error(err)
		return "", 0
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testPatience))
	io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(all), time.Since(began)
}

// Row A3: the slot is empty for a long time, since the next worker is not ready yet, but it serves
// already. Nobody is refused, since nobody waits for as long as they may.
func TestServedBeforeReady(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		s := newStageAt(t, address, foreign, 1, waitingTime/10, 10)
		s.start("a", 0, true)
		ln, err := net.FileListener(s.workers["a"].Files()[0])
		if err != nil {
			t.Fatal(err)
		}
		to := s.groups[0].Addr().String()
		if s.groups[0].Addr().IP.IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.groups[0].Addr().AddrPort().Port()).String()
		}
		var serving, clients sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				io.ReadFull(conn, make([]byte, 18))
				time.Sleep(5 * time.Millisecond)
				io.WriteString(conn, "served")
				conn.Close()
			}
		})
		var served atomic.Int32
		end := time.Now().Add(4 * waitingTime)
		for range 8 {
			clients.Go(func() {
				for time.Now().Before(end) && !t.Failed() {
					answer, took := call(t, to)
					if answer == "served" {
						served.Add(1)
					} else if took < waitingTime {
						t.Errorf("%s: a client is answered %q after %v", address, answer, took)
					}
				}
			})
		}
		clients.Wait()
		ln.Close()
		serving.Wait()
		if served.Load() < 20 {
			t.Errorf("%s: %d are served", address, served.Load())
		}
	}
}

// TestOverdue: each client of an empty slot is refused when its own time is over, no matter when
// others came, and those of another slot are not.
func TestOverdue(t *testing.T) {
	t.Parallel()
	s := newStageAt(t, "127.0.0.1:0", foreign, 1, waitingTime/10, 10)
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			answer, took := call(t, s.groups[0].Addr().String())
			if !strings.HasPrefix(answer, "HTTP/1.1 502 ") || took < waitingTime {
				t.Errorf("answered %q after %v, want 502 after %v", answer, took, waitingTime)
			}
			if took > waitingTime+testPatience/4 {
				t.Errorf("refused after %v, want %v", took, waitingTime)
			}
		})
		time.Sleep(waitingTime / 10)
	}
	clients.Wait()
}
