// An HTTP server that runs alone, or as several workers: handfast run -- ./http
// With --session cookie:route a browser stays with its worker, whatever address it comes from.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"github.com/handfast/handfast/worker"
)

func answer(w http.ResponseWriter, r *http.Request) { // /, /sleep/100ms and /bytes/1000
	delay, _ := time.ParseDuration(path.Base(r.URL.Path))
	size, _ := strconv.ParseUint(path.Base(r.URL.Path), 10, 30)
	time.Sleep(delay)
	self, _ := worker.Self()
	fmt.Fprintf(w, "slot=%d pid=%d generation=%d client=%s\n", self.Slot, os.Getpid(), self.Generation, worker.Client(r))
	w.Write(make([]byte, size))
}

func main() {
	http.HandleFunc("/", answer)
	http.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		for c, err := websocket.Accept(w, r, nil); err == nil; {
			kind, msg, _ := c.Read(r.Context())
			err = c.Write(r.Context(), kind, msg)
		}
	})
	if err := worker.Serve(&http.Server{Addr: ":8080", Handler: worker.StickyCookie("route", http.DefaultServeMux)}); err != nil {
		log.Fatal(err)
	}
}
