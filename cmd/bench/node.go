package main

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The Node programs: server.js is the worker behind all of them, and the lock file
// names the modules that some need.
//
//go:embed node/*.js node/package.json node/package-lock.json
var nodeFiles embed.FS

// The ways in which connections arrive at server.js.
const (
	byListening     = "server"         // it listens, as a server does that knows of no balancer
	byStickyListen  = "sticky-listen"  // by the messages of sticky-listen
	byStickySession = "sticky-session" // by those of sticky-session
)

// envWorkers tells a Node balancer how many workers to start.
const envWorkers = "BENCH_WORKERS"

// npmTimeout bounds the installation of six small modules.
const npmTimeout = 2 * time.Minute

var npmModules = &prerequisite{"modules of npm", func(ctx context.Context, b *runner) error {
	return installModules(ctx, b.node)
}}

// nodePeers are those with Node workers.
var nodePeers = []peer{
	{
		name:  theNodeCluster,
		what:  "Node's own cluster, round robin (its default): not sticky",
		lacks: lacksNode,
		about: aboutNode,
		start: startNode("cluster.js", byListening, "NODE_CLUSTER_SCHED_POLICY=rr"),
	},
	{
		name:  "node-cluster-none",
		what:  "Node's own cluster, `SCHED_NONE`: the workers accept from one listener; not sticky",
		lacks: lacksNode,
		about: aboutNode,
		start: startNode("cluster.js", byListening, "NODE_CLUSTER_SCHED_POLICY=none"),
	},
	{
		name:   theStickyListen,
		what:   "sticky-listen with recluster, as its README has it",
		needs:  npmModules,
		lacks:  lacksNode,
		about:  aboutModules("sticky-listen", "recluster"),
		start:  startNode("sticky-listen.js", byStickyListen),
		reload: signalBalancer,
	},
	{
		name:  "sticky-session",
		what:  "sticky-session, as its README has it",
		needs: npmModules,
		lacks: lacksNode,
		about: aboutModules("sticky-session"),
		start: startNode("server.js", byStickySession),
	},
	{
		name:   "handfast-sticky-listen",
		what:   "`handfast run --route master`, the workers of sticky-listen",
		needs:  npmModules,
		lacks:  lacksNode,
		about:  revision,
		start:  startHandfastNode(byStickyListen, "--route", "master"),
		reload: signalBalancer,
	},
	{
		name:   "handfast-node",
		what:   "`handfast run --route master`, the workers of Node's cluster",
		lacks:  lacksNode,
		about:  revision,
		start:  startHandfastNode(byListening, "--route", "master"),
		reload: signalBalancer,
	},
	{
		name:   "handfast-node-kernel",
		what:   "`handfast run --route kernel`, the workers of Node's cluster",
		lacks:  lacksNode,
		about:  revision,
		start:  startHandfastNode(byListening, "--route", "kernel"),
		reload: signalBalancer,
	},
}

// nodePooledPeers have Node workers behind nginx, as the pooled peers have Go workers.
var nodePooledPeers = []peer{
	{
		name:  theNodePool,
		what:  fmt.Sprintf("nginx, `hash $http_x_forwarded_for consistent`, `keepalive %d`: a pool straight to Node workers on ports of their own", proxyPool),
		lacks: lacksNodePool,
		about: aboutNginxAndNode,
		start: func(s *stage) error { return nginxPooled.startBefore(s, s.runNodeWorker) },
	},
	{
		name:  "handfast-node-pool",
		what:  fmt.Sprintf("nginx, `keepalive %d`, before `handfast run --behind-proxy`: Node workers hand each connection back between two requests", proxyPool),
		lacks: lacksNodePool,
		about: aboutNginxAndNode,
		start: frontedBy(nginxPool("", proxyPool), startHandfastNode(byListening, "--behind-proxy")),
	},
	{
		name:  theNodePoolOff,
		what:  "nginx, a connection for each request, before `handfast run --behind-proxy` and Node workers",
		lacks: lacksNodePool,
		about: aboutNginxAndNode,
		start: frontedBy(nginxPool("", 0), startHandfastNode(byListening, "--behind-proxy")),
	},
}

func (s *stage) runNodeWorker(address string) (int, error) {
	return s.run([]string{envWorker + "=" + byListening, envAddress + "=" + address}, program("node"), filepath.Join(s.node, "server.js"))
}

func lacksNodePool() string { return cmp.Or(lacksNginx(), lacksNode()) }

func aboutNginxAndNode() string { return aboutNginx() + ", " + aboutNode() }

func lacksNode() string {
	return unless(program("node") != "" && program("npm") != "", "nodejs npm")
}

func aboutNode() string { return "Node " + firstLine("node", "--version") }

// aboutModules names the versions that are installed.
func aboutModules(names ...string) func() string {
	return func() string {
		var pack struct{ Dependencies map[string]string }
		text, _ := nodeFiles.ReadFile("node/package.json")
		json.Unmarshal(text, &pack)
		about := ""
		for _, name := range names {
			about += name + " " + pack.Dependencies[name] + ", "
		}
		return about + aboutNode()
	}
}

// startNode starts a program that starts the workers, and balances.
func startNode(script, arrive string, env ...string) func(*stage) error {
	return func(s *stage) error {
		pid, err := s.run(append(s.nodeEnv(arrive), env...), program("node"), filepath.Join(s.node, script))
		s.balancerPIDs = []int{pid}
		return err
	}
}

func startHandfastNode(arrive string, flags ...string) func(*stage) error {
	return func(s *stage) error {
		return s.runHandfast(s.nodeEnv(arrive), append(flags, "--worker-link", "node"),
			program("node"), filepath.Join(s.node, "server.js"))
	}
}

func (s *stage) nodeEnv(arrive string) []string {
	return []string{envWorker + "=" + arrive, envAddress + "=" + s.address.String(), envWorkers + "=" + strconv.Itoa(s.workers)}
}

// writeNode puts the Node programs into a new folder of dir.
func writeNode(dir string) (path string, err error) {
	return filepath.Join(dir, "node"), os.CopyFS(dir, nodeFiles)
}

// installModules installs what the lock file names, where writeNode has put it.
func installModules(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, npmTimeout)
	defer cancel()
	ci := exec.CommandContext(ctx, program("npm"), "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
	ci.Dir, ci.WaitDelay = path, time.Second
	if out, err := ci.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
