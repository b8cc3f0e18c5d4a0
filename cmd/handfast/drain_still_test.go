package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDrainStoodStill: a worker that was stopped while it drains has not looked at its connections for so long. A request that has come meanwhile,
// on a connection that it was about to close as idle, is answered.
func TestDrainStoodStill(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{lean: true})
	old := b.worker(0)
	asks := func(conn net.Conn) *http.Response {
		t.Helper()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := readAnswer(resp); err != nil || a.pid != old {
			t.Fatalf("worker %d is expected, and there is %+v, %v", old, a, err)
		}
		return resp
	}
	var idle, closes net.Conn
	for _, conn := range []*net.Conn{&idle, &closes} {
		c, err := b.dial(source(0))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		asks(c)
		*conn = c
	}
	b.signal(unix.SIGUSR2)
	b.await("reload finished")
	for !asks(closes).Close { // it has not heard yet that it is to drain
	}
	freeze(t, old)
	fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	<-time.After(1100 * time.Millisecond) // package worker closes what was idle for a second
	unix.Kill(old, unix.SIGCONT)
	resp, err := http.ReadResponse(bufio.NewReader(idle), nil)
	if err != nil {
		t.Fatalf("no answer by a worker that stood still: %v", err)
	}
	if a, err := readAnswer(resp); err != nil || a.pid != old {
		t.Errorf("%+v, %v", a, err)
	}
}
