package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"golang.org/x/sys/unix"
)

// A worker that is told to end answers what it has accepted, which a reload relies
// on: also a request that has not arrived whole.
func TestWorkerFinishes(t *testing.T) {
	s := stageFor(t, peer{lacks: nothing})
	defer s.close()
	addresses, err := startPortWorkers(s, s.runPortWorker)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func() error {
		fmt.Fprint(conn, "Host: bench\r\n\r\n")
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = fmt.Fscan(res.Body, new(string))
		return err
	}
	fmt.Fprint(conn, "GET /short HTTP/1.1\r\n")
	if err := ask(); err != nil { // now it is accepted
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET /short HTTP/1.1\r\nConnection: close\r\n")
	unix.Kill(s.started[0].cmd.Process.Pid, unix.SIGTERM)
	if err := s.until(func(ctx context.Context) error {
		again, err := new(net.Dialer).DialContext(ctx, "tcp4", addresses[0])
		if err != nil {
			return nil
		}
		again.Close()
		return fmt.Errorf("%s still listens", addresses[0])
	}); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Error(err)
	}
	if err := s.retire(s.started[:1]); err != nil {
		t.Error(err)
	}
}
