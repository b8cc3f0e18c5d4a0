package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/coder/websocket"
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
	byServe     = "serve"     // the same, to worker.Serve
	byReuseport = "reuseport" // from a listener that shares its port with the other workers'
	byPort      = "port"      // from a listener of its own
)

// headerWorker names the header that holds the worker's process id.
const headerWorker = "X-Worker"

// serve is a worker: the same server whichever way connections arrive. When its
// listener is closed, by handfast or for a signal, it answers what it has accepted.
func serve(mode string) {
	if mode == byServe {
		if err := worker.Serve(&http.Server{Handler: handler()}); err != nil {
			log.Fatalf("bench worker: %v", err)
		}
		return
	}
	ln, err := listen(mode, os.Getenv(envAddress))
	if err != nil {
		log.Fatalf("bench worker: %v", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { ln.Close() })
	// http.Server.Shutdown would drop requests that it has not read yet.
	var open sync.WaitGroup
	srv := &http.Server{Handler: handler(), ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Done()
		}
	}}
	if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
		log.Fatalf("bench worker: %v", err)
	}
	open.Wait()
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
	mux.HandleFunc("/websocket", echo)
	mux.HandleFunc("/download", send)
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

// echo returns each message.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

// send answers with as many bytes as were asked for.
func send(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for piece := make([]byte, 256<<10); left > 0 && err == nil; left -= int64(len(piece)) {
		_, err = w.Write(piece[:min(left, int64(len(piece)))])
	}
}
