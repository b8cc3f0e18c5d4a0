// Command plain is a web server that knows nothing of handfast: plain ADDRESS. Under systemd,
// or --worker-link activation, it takes the listener that it is passed.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ln, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(answer)}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go server.Serve(ln)
	<-ctx.Done()
	// Shutdown would close connections on which nothing has been read yet, so it comes a
	// moment after the last of them.
	ln.Close()
	time.Sleep(500 * time.Millisecond)
	server.Shutdown(context.Background())
}

func listen() (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") == "" {
		return net.Listen("tcp", os.Args[1])
	}
	file := os.NewFile(3, "listener") // man 3 sd_listen_fds
	defer file.Close()                // FileListener duplicates it
	return net.FileListener(file)
}

func answer(w http.ResponseWriter, r *http.Request) {
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(w, "slot=%s pid=%d generation=%s client=%s\n",
		os.Getenv("HANDFAST_SLOT"), os.Getpid(), os.Getenv("HANDFAST_GENERATION"), client)
}
