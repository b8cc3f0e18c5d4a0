package proxies_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"testing"

	"github.com/coder/websocket"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/worker"
)

// The test binary plays the worker when handfast starts it.
const testRole = "HANDFAST_TEST_BINARY"

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
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		self, _ := worker.Self()
		w.Header().Set("Slot", strconv.Itoa(self.Slot))
		mux.ServeHTTP(w, r)
	})
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
