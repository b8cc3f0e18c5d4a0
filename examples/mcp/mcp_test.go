// Package mcp_test runs an MCP server under the real command, and clients of the SDK from npm.
package mcp_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// sessions is how many clients there are before each address: few, but in make soak.
func sessions() string {
	if os.Getenv("HANDFAST_TEST_CLIENTS") == "" {
		return "8"
	}
	return "40"
}

// round is what clients.js says when every session has written and read, or failed.
type round struct {
	Round, Failed int
	Why           map[string]int
	Workers       map[string]int
}

// TestSessions: each session stays with the worker that has begun it, although all share connections, direct and
// through the pools of nginx and HAProxy, and although a reload replaces the workers.
func TestSessions(t *testing.T) {
	trial.Nginx.Need(t)
	trial.HAProxy.Need(t)
	node, dir := trial.Install(t, "server.js", "clients.js")
	listen := trial.FreeAddress(t)
	host, port, _ := net.SplitHostPort(listen)
	t.Setenv("HOST", host)
	t.Setenv("PORT", port)
	flags := []string{"--session", "header:Mcp-Session-Id", "--new-sessions", "least", "--stop-timeout", "1s"}
	handfast, _ := trial.BalanceAt(t, listen, flags, node, filepath.Join(dir, "server.js"))
	clients := map[string]*trial.Process{}
	_, nginx := trial.Nginx.Start(t, "../proxies/nginx-pool.conf", listen)
	_, haproxy := trial.HAProxy.Start(t, "../proxies/haproxy-pool.cfg", listen)
	for before, address := range map[string]string{"nobody": listen, "nginx": nginx, "HAProxy": haproxy} {
		clients[before] = trial.Start(t, node, filepath.Join(dir, "clients.js"), "http://"+address+"/mcp", sessions(), "Infinity")
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
			t.Errorf("behind %s: round %d, %d of %s sessions have failed: %v", before, last.Round, last.Failed, sessions(), last.Why)
		} else {
			t.Logf("behind %s: %d rounds of %s sessions, none has failed", before, last.Round, sessions())
		}
		c.Stop()
	}
	handfast.Stop()
}
