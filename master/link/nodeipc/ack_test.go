package nodeipc

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec"
)

// FuzzAck: what is understood without being parsed means the same when it is.
func FuzzAck(f *testing.F) {
	for _, text := range []string{
		`{"cmd":"NODE_HANDLE_ACK"}`,
		`{"cmd":"NODE_HANDLE_ACK"} `,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true,"seq":4}`,
		`{"cmd":"NODE_CLUSTER","ack":0,"accepted":true,"seq":0}`,
		`{"cmd":"NODE_CLUSTER","ack":017,"accepted":true,"seq":4}`,
		`{"cmd":"NODE_CLUSTER","ack":-1,"accepted":true,"seq":4}`,
		`{"cmd":"NODE_CLUSTER","ack":1e3,"accepted":true,"seq":4}`,
		`{"cmd":"NODE_CLUSTER","ack":,"accepted":true,"seq":4}`,
		`{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":4,"ack":2}`,
		`{"cmd":"NODE_CLUSTER","ack":999999999999999999,"accepted":true,"seq":999999999999999999}`,
		`{"cmd":"NODE_CLUSTER","ack":9999999999999999999,"accepted":true,"seq":9999999999999999999}`,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":false,"seq":4}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var m message
		err := json.Unmarshal(line, &m)
		if isAck(line) && (err != nil || m.Cmd != cmdAck) {
			t.Errorf("%q is taken for an ACK; parsed: %+v, error %v", line, m, err)
		}
		if seq, ok := isAccept(line); ok && (err != nil || m.Cmd != cmdCluster || m.Ack == nil || *m.Ack != seq || !m.Accepted) {
			t.Errorf("%q is taken for an accept of %d; parsed: %+v, error %v", line, seq, m, err)
		}
	})
}

// TestIsAccept: acknowledgements go the short way, and all else is left to the parser.
func TestIsAccept(t *testing.T) {
	for line, want := range map[string]int64{
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true,"seq":4}`:                                  17,
		`{"cmd":"NODE_CLUSTER","ack":0,"accepted":true,"seq":0}`:                                   0,
		`{"cmd":"NODE_CLUSTER","ack":999999999999999999,"accepted":true,"seq":999999999999999999}`: 999999999999999999,
		`{"cmd":"NODE_CLUSTER","ack":1000000000000000000,"accepted":true,"seq":1}`:                 -1, // parsed, for its length
		`{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":1000000000000000000}`:                 -1,
		`{"cmd":"NODE_CLUSTER","ack":18446744073709551617,"accepted":true,"seq":1}`:                -1,
		`{"cmd":"NODE_CLUSTER","ack":01,"accepted":true,"seq":4}`:                                  -1,
		`{"cmd":"NODE_CLUSTER","ack":-1,"accepted":true,"seq":4}`:                                  -1,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":false,"seq":4}`:                                 -1,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true,"seq":4`:                                   -1,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true,"seq":4}}`:                                 -1,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true,"seq":}`:                                   -1,
		`{"cmd":"NODE_CLUSTER","ack":17,"accepted":true}`:                                          -1,
		`{"cmd":"NODE_CLUSTER","act":"newconn","ack":17,"accepted":true,"seq":4}`:                  -1,
		`{"cmd":"NODE_HANDLE_ACK"}`:                                                                -1,
		``:                                                                                         -1,
	} {
		if seq, ok := isAccept([]byte(line)); ok != (want >= 0) || ok && seq != want {
			t.Errorf("%s: %d, %v; want %d", line, seq, ok, want)
		}
	}
}

// TestConnectionAllocatesNothing: nothing is allocated for a connection: it is sent, and acknowledged twice.
func TestConnectionAllocatesNothing(t *testing.T) {
	const runs = 30 // fewer than the channel has room for
	l, w, _ := openLink(t, ReadyAuto)
	w.listens()
	hs, clients := connect(t, runs+1) // AllocsPerRun runs once more
	deliver(t, l, hs)
	ack, next := []byte(`{"cmd":"NODE_HANDLE_ACK"}`), 0
	words := make([][]byte, len(hs))
	for i := range words {
		words[i] = fmt.Appendf(nil, `{"cmd":"NODE_CLUSTER","ack":%d,"accepted":true,"seq":%d}`, w.takes(), 100+i)
	}
	if n := testing.AllocsPerRun(runs, func() {
		reexec.Lock.RLock()
		defer reexec.Lock.RUnlock()
		l.handle(ack)
		l.handle(words[next])
		next++
	}); n != 0 {
		t.Errorf("%v allocations for a connection that is acknowledged", n)
	}
	gone(t, clients...)

	hs, _ = connect(t, 1)
	defer fdpass.CloseHandoffs(hs)
	text := []byte("text\n")
	if n := testing.AllocsPerRun(runs, func() {
		if _, err := l.channel.send(text, hs[0].FD); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a connection that is sent", n)
	}
}

// Node writes these words as ack.go knows them. If a version writes them otherwise they are
// parsed, and this test tells that a connection costs more.
func TestNodeSaysSo(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("apt-get install nodejs")
	} else if err != nil {
		t.Skip("apt-get install nodejs")
	}
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.file.Close()
	script := filepath.Join(t.TempDir(), "server.js") // what -e runs is no cluster worker
	if err := os.WriteFile(script, []byte("require('net').createServer().listen(8080)"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(node, script)
	cmd.Env = append(os.Environ(), "NODE_CHANNEL_FD=3", "NODE_CHANNEL_SERIALIZATION_MODE=json", "NODE_UNIQUE_ID=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	ours.file.SetReadDeadline(time.Now().Add(timeout))

	var said []string
	var ack, accept bool
	for !ack || !accept {
		if err := ours.receive(func() {}, func(text []byte) {
			said = append(said, string(text))
			seq, ok := isAccept(text)
			ack, accept = ack || isAck(text), accept || ok && seq == 17
			var m message
			if json.Unmarshal(text, &m); m.Act != "queryServer" {
				return
			}
			key := m.query.key()
			answer := reply{Cmd: cmdCluster, Ack: m.Seq, Key: key, Sockname: &sockname{"::", "IPv6", 8080}}
			offer := toServer(key)
			hs, _ := connect(t, 1)
			defer fdpass.CloseHandoffs(hs)
			ours.send(line(answer), -1)
			ours.send(offer.append(nil, 17), hs[0].FD)
		}); err != nil {
			t.Fatalf("%v; Node says %q", err, said)
		}
	}
}
