package main

import (
	"errors"
	"fmt"
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
	}
	http.HandleFunc("/", answerWith)
	http.HandleFunc("/ws", echo)
	if err := worker.Serve(new(http.Server)); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

func answerWith(w http.ResponseWriter, r *http.Request) {
	delay, _ := time.ParseDuration(path.Base(r.URL.Path))
	size, _ := strconv.ParseUint(path.Base(r.URL.Path), 10, 30)
	time.Sleep(delay)
	self, _ := worker.Self()
	client, _ := netip.ParseAddrPort(r.RemoteAddr)
	fmt.Fprintf(w, "slot=%d pid=%d generation=%d client=%s\n", self.Slot, os.Getpid(), self.Generation, client.Addr())
	if r.URL.Path == "/env" {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	}
	w.Write(make([]byte, size))
}

func echo(w http.ResponseWriter, r *http.Request) {
	for c, err := websocket.Accept(w, r, nil); err == nil; {
		kind, msg, _ := c.Read(r.Context())
		err = c.Write(r.Context(), kind, msg)
	}
}
