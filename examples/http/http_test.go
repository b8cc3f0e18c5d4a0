package main_test

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

func TestWorker(t *testing.T) {
	trial.Worker(t, trial.Build(t, "github.com/handfast/handfast/examples/http"))
}

// TestPaths: /bytes/N, /sleep/DURATION and /ws.
func TestPaths(t *testing.T) {
	p, address := trial.Balance(t, trial.Build(t, "github.com/handfast/handfast/examples/http"))
	client := trial.ClientAt(trial.Loopback(1))
	response, err := client.Get("http://" + address + "/bytes/1000000")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if _, zeros, _ := bytes.Cut(body, []byte("\n")); err != nil || !bytes.Equal(zeros, make([]byte, 1_000_000)) {
		t.Errorf("%d bytes, %v", len(body), err)
	}

	begin := time.Now()
	if _, err := trial.Get(client, address+"/sleep/50ms"); err != nil || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("it slept %v, error %v", time.Since(begin), err)
	}

	c, _, err := websocket.Dial(t.Context(), "ws://"+address+"/ws", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, want := range []string{"hello", "", string(make([]byte, 10_000))} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if kind, got, err := c.Read(t.Context()); kind != websocket.MessageText || string(got) != want || err != nil {
			t.Errorf("echo of %d bytes: %v of %d bytes, %v", len(want), kind, len(got), err)
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
	client.CloseIdleConnections()
	p.Stop()
}
