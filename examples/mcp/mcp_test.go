// Package mcp_test runs an MCP server under the real command, and clients of the SDK from npm.
package mcp_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const sessions = 16

// round is what clients.js says when every session has written and read, or failed.
type round struct {
	Round, Failed int
	Why           map[string]int
	Workers       map[string]int
}

// TestSessions: each session stays with the worker that has begun it, although all share connections, direct and
// through nginx's pool, and although a reload replaces the workers.
func TestSessions(t *testing.T) {
	node, dir := trial.Install(t, "server.js", "clients.js")
	listen := trial.FreeAddress(t)
	host, port, _ := net.SplitHostPort(listen)
	t.Setenv("HOST", host)
	t.Setenv("PORT", port)
	flags := []string{"--session", "header:Mcp-Session-Id", "--new-sessions", "least", "--stop-timeout", "1s"}
	handfast, _ := trial.BalanceAt(t, listen, flags, node, filepath.Join(dir, "server.js"))
	clients := map[string]*trial.Process{}
	for before, address := range map[string]string{"nobody": listen, "nginx": nginx(t, listen)} {
		clients[before] = trial.Start(t, node, filepath.Join(dir, "clients.js"), "http://"+address+"/mcp", strconv.Itoa(sessions), "Infinity")
	}
	begun := map[string]round{}
	for before, c := range clients {
		if begun[before] = trial.AwaitRound[round](c, 2); len(begun[before].Workers) < 2 {
			t.Errorf("behind %s: sessions are at one worker: %+v", before, begun[before])
		}
	}
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	for before, c := range clients {
		if last := trial.AwaitRound[round](c, 2); last.Failed > 0 {
			t.Errorf("behind %s: round %d, %d of %d sessions have failed: %v", before, last.Round, last.Failed, sessions, last.Why)
		} else {
			t.Logf("behind %s: %d rounds of %d sessions, none has failed", before, last.Round, sessions)
		}
		c.Stop()
	}
	handfast.Stop()
}

// nginx returns its address. All its connections are kept, and mixed.
func nginx(t *testing.T, handfast string) (address string) {
	t.Helper()
	_, address = trial.Nginx.Start(t, "../proxies/nginx-pool.conf", handfast)
	return address
}
