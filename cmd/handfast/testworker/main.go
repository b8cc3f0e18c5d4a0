package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// playWorker is the worker in these tests. The first argument says how it behaves:
//
//	http         serves as examples/http does
//	gate FILE    the same, but is ready only while FILE exists
//	broken FILE  the same, but exits at once while FILE exists
//	mute         never becomes ready
//	exit N       exits with status N
//	stubborn     is ready, takes nothing, and ignores drain and SIGTERM
//	receives     the same as http, without accepting from the slot's listeners
//	hoards       never becomes ready, and holds the slot's listeners, whatever happens
//	raw          answers a connection's first bytes with the line of http and those bytes
//	accepts      the same as http, with several threads that wait in accept; for --worker-link any
//
// With --worker-link any they know nothing of handfast.
func playWorker(args []string) int {
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
		select {}
	case "mute":
		select {}
	case "exit":
		n, _ := strconv.Atoi(args[1])
		return n
	case "stubborn":
		signal.Ignore(unix.SIGTERM)
		ln, err := worker.Listen("")
		if err != nil || ln.Ready() != nil {
			return 1
		}
		select {}
	case "raw":
		return playRaw()
	}
	http.HandleFunc("/", answerWith)
	http.HandleFunc("/ws", echo)
	if address := os.Getenv(testListen); address != "" {
		if args[0] == "accepts" {
			return playAccepts(address)
		}
		return playListens(address)
	}
	if err := worker.Serve(new(http.Server)); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
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
	io.WriteString(w, lineFor(r.RemoteAddr))
	if r.URL.Path == "/env" {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	}
	w.Write(make([]byte, size))
}

func lineFor(remote string) string {
	self, _ := worker.Self()
	client, _ := netip.ParseAddrPort(remote)
	return fmt.Sprintf("slot=%d pid=%d generation=%d client=%s\n", self.Slot, os.Getpid(), self.Generation, client.Addr())
}

func playRaw() int {
	ln, err := worker.Listen("")
	if err != nil {
		return 1
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 0
		}
		go func() {
			defer conn.Close()
			first := make([]byte, 64<<10)
			n, _ := conn.Read(first)
			fmt.Fprintf(conn, "%s%s", lineFor(conn.RemoteAddr().String()), first[:n])
		}()
	}
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
