// Command hello says how often each client was here. What it knows of them is in its memory.
package main

import (
	"cmp"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/handfast/handfast/worker"
)

var (
	mu     sync.Mutex
	visits = make(map[string]int)
)

func hello(w http.ResponseWriter, r *http.Request) {
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	mu.Lock()
	defer mu.Unlock()
	visits[client]++
	fmt.Fprintf(w, "worker %s: visit %d of %s\n", os.Getenv("HANDFAST_SLOT"), visits[client], client)
}

func main() {
	address := ":" + cmp.Or(os.Getenv("PORT"), "8080")
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(hello)}
	if err := worker.Serve(server); err != nil { // was: server.ListenAndServe()
		log.Fatal(err)
	}
}
