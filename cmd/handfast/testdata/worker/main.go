// Testworker is the worker in the tests of cmd/handfast. The first argument says how it behaves:
//
//	http         serves as examples/http does
//	gate FILE    the same, but is ready only while FILE exists
//	broken FILE  the same, but exits at once while FILE exists
//	dies FILE    the same, but if FILE exists at its start it exits half a second later
//	talks FILE   the same as broken, and prints what happens
//	mute         never becomes ready
//	exit N       exits with status N
//	stubborn     is ready, takes nothing, and ignores drain and SIGTERM
//	receives     the same as http, without accepting from the slot's listeners
//	hoards       never becomes ready, and holds the slot's listeners, whatever happens
//	old          the same as http, without reports and answers to pings, as an earlier version
//	activated    the same as http, on the listener that it inherits as descriptor 3
//	burgles      the same as http, but tries what only the master's user may
//	hostile      sends the master what must not be closed; in slot 0 the same as http
//	raw          answers a connection's first bytes with the line of http, the TLVs of its PROXY header, and those bytes
//	returns DIR  the same as http, but the first in each slot but 0 hands back what it was not handed; DIR is empty at the start
//	careless     the same as http, but with --worker-link any or activation: SIGTERM ends it at once
//	accepts N    the same as http, with N threads that wait in accept; for --worker-link any
//
// With HANDFAST_TEST_TLS=1 http and careless serve TLS and HTTP/2, by a certificate of their own.
// With --worker-link any they know nothing of handfast, and listen where HANDFAST_TEST_LISTEN says.
// It is a program of its own so that it starts soon: tests start hundreds of them.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/worker"
)

func main() { os.Exit(play(os.Args[1:])) }

func play(args []string) int {
	switch args[0] {
	case "http":
	case "gate":
		for !exists(args[1]) {
			time.Sleep(5 * time.Millisecond)
		}
	case "broken":
		if exists(args[1]) {
			return 3
		}
	case "dies":
		if exists(args[1]) {
			time.AfterFunc(time.Second/2, func() { os.Exit(4) })
		}
	case "talks":
		return playTalks(args)
	case "receives":
		listeners, err := takeListeners()
		if err != nil {
			return 1
		}
		fdpass.CloseHandoffs(listeners)
	case "hoards":
		if _, err := takeListeners(); err != nil {
			return 1
		}
		fmt.Fprintln(os.Stderr, "hoards")
		forever()
	case "mute":
		forever()
	case "exit":
		n, _ := strconv.Atoi(args[1])
		return n
	case "stubborn":
		signal.Ignore(unix.SIGTERM)
		ln, err := worker.Listen("")
		if err != nil || ln.Ready() != nil {
			return 1
		}
		forever()
	case "old":
		os.Unsetenv("HANDFAST_REPORT")
		os.Unsetenv("HANDFAST_PING")
	case "raw":
		return playRaw()
	case "returns":
		if !playReturns(args[1]) {
			return 1
		}
	case "burgles":
		burgle()
	case "hostile":
		if self, _ := worker.Self(); self.Slot > 0 {
			return playHostile()
		}
	}
	http.HandleFunc("/", answerWith)
	http.HandleFunc("/ws", echo)
	http.HandleFunc("/events", events)
	http.HandleFunc("/events/", events)
	if args[0] == "careless" {
		return playCareless()
	}
	if args[0] == "activated" {
		ln, err := net.FileListener(os.NewFile(3, "listener"))
		if err != nil {
			return 1
		}
		return serveUntilTold(ln)
	}
	if address := os.Getenv("HANDFAST_TEST_LISTEN"); address != "" {
		if args[0] == "accepts" {
			threads, _ := strconv.Atoi(args[1])
			return playAccepts(address, threads)
		}
		return playListens(address)
	}
	server := &http.Server{Handler: worker.StickyCookie("route", http.DefaultServeMux)}
	if os.Getenv("HANDFAST_TEST_TLS") == "1" {
		server.TLSConfig = ownCertificate()
	}
	if err := worker.Serve(server); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

// forever does not return. An empty select would be a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// takeListeners takes the slot's listeners out of the mailbox. A worker that does not know of
// them does so too.
func takeListeners() ([]fdpass.Handoff, error) {
	fd, err := unix.FcntlInt(3, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mailbox, err := fdpass.NewConn(os.NewFile(uintptr(fd), "mailbox"))
	if err != nil {
		return nil, err
	}
	defer mailbox.Close()
	var m fdpass.Message
	err = mailbox.Receive(&m)
	return m.Handoffs, err
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

func answerWith(w http.ResponseWriter, r *http.Request) {
	delay, _ := time.ParseDuration(path.Base(r.URL.Path))
	size, _ := strconv.ParseUint(path.Base(r.URL.Path), 10, 30)
	time.Sleep(delay)
	length, _ := io.Copy(io.Discard, r.Body)
	io.WriteString(w, lineFor(r.RemoteAddr))
	if r.Method == http.MethodPost {
		fmt.Fprint(w, length)
	}
	if r.URL.Path == "/env" {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	}
	w.Write(make([]byte, size))
}

func lineFor(remote string) string {
	self, _ := worker.Self()
	client, err := netip.ParseAddrPort(remote)
	if err != nil { // of a Unix socket
		return fmt.Sprintf("slot=%d pid=%d generation=%d client=0.0.0.0\n", self.Slot, os.Getpid(), self.Generation)
	}
	return fmt.Sprintf("slot=%d pid=%d generation=%d client=%s\n", self.Slot, os.Getpid(), self.Generation, client.Addr())
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, msg) != nil {
			return
		}
	}
}
