// Package sockjs_test runs a SockJS server as Meteor has it under the real command, and
// 200 clients with SockJS's own client library.
package sockjs_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// Clients by each transport; client.js goes round.
var transports = map[string]int{"xhr-polling": 67, "xhr-streaming": 67, "websocket": 66}

const clients = 200

// round is what client.js says when every client has its answer.
type round struct {
	Round              int
	Slots, Generations map[string]int
	Ended              map[string]int // sessions, since the start
}

// awaitRound returns the newest round, when there were so many. Each client has sent
// its message in the previous one before it ended.
func awaitRound(clients *trial.Process, n int) (last round) {
	clients.Await("round", n, func(line string) bool {
		var r round
		if json.Unmarshal([]byte(line), &r) != nil {
			return false
		}
		last = r
		return true
	})
	return last
}

func TestDirect(t *testing.T) {
	try(t, nil, func(handfast string) string { return handfast })
}

func TestNginx(t *testing.T) {
	// The clients' addresses, too, are on loopback.
	try(t, []string{"--behind-proxy", "--trusted-proxies", "127.0.0.1"}, func(handfast string) string {
		_, address := trial.Nginx.Start(t, filepath.Join("..", "proxies", "nginx-websocket.conf"), handfast)
		return address
	})
}

// try: each client stays in its slot, by whichever transport, and no session ends. A
// reload ends no WebSocket. It ends the other sessions once, since their next request comes
// to a worker that does not know them; the next session is in the same slot.
func try(t *testing.T, flags []string, before func(handfast string) string) {
	node, dir := trial.Install(t, "server.js", "client.js")
	listen := trial.FreeAddress(t)
	_, port, _ := net.SplitHostPort(listen)
	t.Setenv("PORT", port)
	// Sessions keep a worker for a minute after their clients have gone.
	flags = append(flags, "--stop-timeout", "1s")
	handfast, at := trial.BalanceAt(t, listen, flags, node, filepath.Join(dir, "server.js"))
	clients := trial.Start(t, node, filepath.Join(dir, "client.js"), "http://"+before(at)+"/sockjs", strconv.Itoa(clients), "Infinity")

	first := awaitRound(clients, 4)
	want(t, first, 1, nil)

	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	under := awaitRound(clients, 1).Round // and another one is under way
	last := awaitRound(clients, under+3)
	want(t, last, 2, map[string]int{"xhr-polling": 67, "xhr-streaming": 67})
	t.Logf("%d rounds; ended by the reload: %v", last.Round, last.Ended)

	clients.Stop()
	handfast.Stop()
	handfast.Await("nobody refused", 1, func(line string) bool {
		return strings.Contains(line, `"stopped"`) && strings.Contains(line, `"refused":0`)
	})
}

// want checks a round: where the clients are, which generation answers those without
// a WebSocket, and how many sessions have ended by transport.
func want(t *testing.T, got round, generation int, ended map[string]int) {
	t.Helper()
	if want := slots(); !maps.Equal(got.Slots, want) {
		t.Errorf("round %d: clients in slots %v, want %v", got.Round, got.Slots, want)
	}
	generations := map[string]int{}
	for transport, n := range transports {
		g := generation
		if transport == "websocket" {
			g = 1
		}
		generations[fmt.Sprintf("%s: %d", transport, g)] = n
	}
	if !maps.Equal(got.Generations, generations) {
		t.Errorf("round %d: answered by generations %v, want %v", got.Round, got.Generations, generations)
	}
	endedBy := map[string]int{}
	for reason, n := range got.Ended {
		transport, _, _ := strings.Cut(reason, ":")
		if !strings.HasSuffix(reason, "1006 Server lost session") && !strings.HasSuffix(reason, "1006 Sending error: Error: http status 404") {
			t.Errorf("round %d: a session has ended: %s", got.Round, reason)
		}
		endedBy[transport] += n
	}
	if !maps.Equal(endedBy, ended) {
		t.Errorf("round %d: sessions ended: %v, want %v", got.Round, got.Ended, ended)
	}
}

// slots returns how many of client.js's addresses are in which slot.
func slots() map[string]int {
	n := map[string]int{}
	for i := range clients {
		address := netip.AddrFrom4([4]byte{127, 0, byte(1 + i/250), byte(1 + i%250)})
		n[strconv.Itoa(hash.DefaultConfig().Key(address).Slot(trial.Workers))]++
	}
	return n
}
