// Package sockjs_test runs a SockJS server as Meteor has it under the real command, and
// 200 clients with SockJS's own client library.
package sockjs_test

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// Clients by each transport; client.js goes round.
var transports = map[string]int{"xhr-polling": 67, "xhr-streaming": 67, "websocket": 66}

const clients = 200

// round is what client.js says when every client has its answer. Each has sent its message in the previous one before it ended.
type round struct {
	Round              int
	Slots, Generations map[string]int
	Ended              map[string]int // sessions, since the start
}

// TestDirect: clients come by IPv4 and IPv6 in turn.
func TestDirect(t *testing.T) {
	_, port, _ := net.SplitHostPort(trial.FreeAddress(t))
	try(t, ":"+port, nil, func() []string {
		return []string{"127.0.0.1:" + port, "::1"}
	})
}

// TestNginx: they come from two addresses in turn, and share the connections between nginx and handfast.
func TestNginx(t *testing.T) {
	listen := trial.FreeAddress(t)
	// The clients' addresses, too, are on loopback.
	try(t, listen, []string{"--behind-proxy", "--trusted-proxies", "127.0.0.1"}, func() []string {
		_, address := trial.Nginx.Start(t, filepath.Join("..", "proxies", "nginx-pool.conf"), listen)
		return []string{address}
	})
}

// try: each session stays with its worker, by whichever transport, and none ends, also not in a reload.
func try(t *testing.T, listen string, flags []string, before func() (addresses []string)) {
	node, dir := trial.Install(t, "server.js", "client.js")
	_, port, _ := net.SplitHostPort(listen)
	t.Setenv("PORT", port)
	// Sessions keep a worker for a minute after their clients have gone.
	flags = append(flags, "--key", "path:/sockjs/*/{session}", "--drain-affinity", "1m", "--stop-timeout", "1s")
	handfast, _ := trial.BalanceAt(t, listen, flags, node, filepath.Join(dir, "server.js"))
	to := before()
	clients := trial.Start(t, node, slices.Concat([]string{filepath.Join(dir, "client.js"), "http://" + to[0] + "/sockjs", strconv.Itoa(clients), "Infinity"}, to[1:])...)

	first := trial.AwaitRound[round](clients, 4)
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	last := trial.AwaitRound[round](clients, 4)
	if len(first.Slots) != trial.Workers || !maps.Equal(first.Slots, last.Slots) {
		t.Errorf("round %d: clients in slots %v; round %d: %v", first.Round, first.Slots, last.Round, last.Slots)
	}
	want := map[string]int{}
	for transport, n := range transports {
		want[transport+": 1"] = n
	}
	if !maps.Equal(last.Generations, want) || len(last.Ended) > 0 {
		t.Errorf("round %d: answered by generations %v, want %v; sessions ended: %v, want none", last.Round, last.Generations, want, last.Ended)
	}
	t.Logf("%d rounds", last.Round)

	// Before anybody stops: nginx may try again, at a handfast that stops, what its clients left.
	if n := handfast.Count(func(line string) bool { return strings.Contains(line, `"connection refused"`) }); n > 0 {
		t.Errorf("connections refused: %d lines, want none", n)
	}
	clients.Stop()
	handfast.Stop()
}
