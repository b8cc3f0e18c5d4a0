package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/worker"
)

// The environment of a worker: how connections arrive, and the address at which
// they do.
const (
	envWorker  = "BENCH_WORKER"
	envAddress = "BENCH_ADDRESS"
)

// The ways in which connections arrive.
const (
	byMailbox   = "mailbox"   // handed off
	byReuseport = "reuseport" // from a listener that shares its port with the other workers'
	byPort      = "port"      // from a listener of its own
)

// headerWorker names the header that holds the worker's process id.
const headerWorker = "X-Worker"

// serve is a worker: the same server whichever way connections arrive.
func serve(mode string) {
	ln, err := listen(mode, os.Getenv(envAddress))
	if err == nil {
		err = http.Serve(ln, handler())
	}
	if !errors.Is(err, net.ErrClosed) { // which is how handfast ends it
		log.Fatalf("bench worker: %v", err)
	}
}

func listen(mode, address string) (net.Listener, error) {
	var config net.ListenConfig
	switch mode {
	case byMailbox:
		return worker.Listen("")
	case byReuseport:
		config.Control = reuseport
	}
	return config.Listen(context.Background(), "tcp4", address)
}

func reuseport(_, _ string, raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}); e != nil {
		return e
	}
	return err
}

func handler() http.Handler {
	pid := strconv.Itoa(os.Getpid())
	mux := http.NewServeMux()
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerWorker, pid)
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("/held", hold)
	return mux
}

// hold switches protocols, as a WebSocket does, and keeps the connection until
// the client closes it.
func hold(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: held\r\n\r\n")
	conn.Read(make([]byte, 1))
}
