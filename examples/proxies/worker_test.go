package proxies_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/worker"
)

// The test binary plays the worker when handfast starts it.
const testRole = "HANDFAST_TEST_BINARY"

// What the worker is told in its environment.
const (
	listensAt  = "HANDFAST_TEST_AT"     // an address: it listens there by itself
	setsCookie = "HANDFAST_TEST_COOKIE" // it names itself in the cookie SRV
)

// messageLimit is more than the test's longest WebSocket message.
const messageLimit = 1 << 20

func TestMain(m *testing.M) {
	if os.Getenv(testRole) != "" {
		os.Exit(playWorker())
	}
	os.Setenv(testRole, "1")
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each worker takes a second to exit
	os.Exit(trial.Main(m))
}

func playWorker() int {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", answer)
	mux.HandleFunc("POST /sum", sum)
	mux.HandleFunc("GET /ws", echo)
	mux.HandleFunc("GET /poll/{client}", polls.wait)
	mux.HandleFunc("POST /poll/{client}", polls.send)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		self, _ := worker.Self()
		w.Header().Set("Slot", strconv.Itoa(self.Slot))
		w.Header().Set("Forwarded", r.Header.Get("X-Forwarded-For")+" "+r.Header.Get("X-Forwarded-Proto"))
		if _, err := r.Cookie("SRV"); err != nil && os.Getenv(setsCookie) != "" {
			http.SetCookie(w, &http.Cookie{Name: "SRV", Value: fmt.Sprintf("app%02d", self.Slot+1), Path: "/"})
		}
		mux.ServeHTTP(w, r)
	})
	if address := os.Getenv(listensAt); address != "" { // a server that knows nothing of handfast
		fmt.Fprintln(os.Stderr, "worker:", http.ListenAndServe(address, handler))
		return 1
	}
	if err := worker.Serve(&http.Server{Handler: handler}); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

// answer is what trial.Answer holds.
func answer(w http.ResponseWriter, r *http.Request) {
	self, _ := worker.Self()
	fmt.Fprintf(w, "slot=%d pid=%d generation=%d client=%s\n", self.Slot, os.Getpid(), self.Generation, worker.Client(r))
}

func sum(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	if _, err := io.Copy(hash, r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%x", hash.Sum(nil))
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // and it has answered
	}
	defer c.CloseNow()
	c.SetReadLimit(messageLimit)
	for err == nil {
		var kind websocket.MessageType
		var message []byte
		if kind, message, err = c.Read(r.Context()); err == nil {
			err = c.Write(r.Context(), kind, message)
		}
	}
}

// longPolls are the clients that wait for a message.
type longPolls struct {
	mu      sync.Mutex
	waiting map[string]chan string
}

var polls = longPolls{waiting: make(map[string]chan string)}

// pollTime is how long a client waits for a message at most.
const pollTime = 2 * time.Second

// wait answers with the next message for the client, or with status 204.
func (p *longPolls) wait(w http.ResponseWriter, r *http.Request) {
	client, message := r.PathValue("client"), make(chan string, 1)
	p.mu.Lock()
	p.waiting[client] = message
	p.mu.Unlock()
	select {
	case text := <-message:
		io.WriteString(w, text)
	case <-time.After(pollTime):
		w.WriteHeader(http.StatusNoContent)
	}
}

// send gives a message to a client, and answers with status 404 if it does not wait in this process.
func (p *longPolls) send(w http.ResponseWriter, r *http.Request) {
	client := r.PathValue("client")
	text, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	message := p.waiting[client]
	delete(p.waiting, client)
	p.mu.Unlock()
	if message == nil {
		http.NotFound(w, r)
		return
	}
	message <- string(text)
}
