package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peer is one way for connections to reach the workers.
type peer struct {
	name  string
	what  string
	files int           // descriptors that the balancer holds for an open connection
	needs *prerequisite // nil: nothing
	lacks func() string // the package to install, empty: nothing
	about func() string // the version
	start func(*stage) error

	// reload replaces all workers while connections arrive, as users of the peer do
	// it. It may return before the last old one is gone. Nil: the peer cannot.
	reload func(*stage) error
}

func (p peer) String() string { return p.name }

// prerequisite is what has to be fetched before the peers that need it can be measured.
type prerequisite struct {
	what string
	get  func(context.Context, *runner) error
}

// peers is the table of peers.
var peers = slices.Concat(goPeers, nodePeers, nodePooledPeers)

// goPeers are those with Go workers.
var goPeers = []peer{
	{
		name:   theLimit,
		what:   "the workers accept for themselves (SO_REUSEPORT): no balancer, no stickiness, the limit",
		lacks:  nothing,
		about:  func() string { return "" },
		start:  startReuseport,
		reload: reloadReuseport,
	},
	{
		name:   theSteered,
		what:   "`handfast run --route kernel`, the default: each slot's worker accepts for itself",
		lacks:  nothing,
		about:  revision,
		start:  startHandfast("--route", "kernel"),
		reload: signalBalancer,
	},
	{
		name:   theHandoff,
		what:   "`handfast run --route master`: the master accepts and hands off",
		lacks:  nothing,
		about:  revision,
		start:  startHandfast("--route", "master"),
		reload: signalBalancer,
	},
	{
		name:  "handfast-behind-proxy",
		what:  "`handfast run --behind-proxy`",
		lacks: nothing,
		about: revision,
		start: startHandfast("--behind-proxy"),
	},
	{
		name:  "handfast-sessions",
		what:  "`handfast run --behind-proxy --key cookie:id,query:id --session engine.io --session header:Mcp-Session-Id`",
		lacks: nothing,
		about: revision,
		start: startHandfast("--behind-proxy", "--key", "cookie:id,query:id", "--session", "engine.io", "--session", "header:Mcp-Session-Id"),
	},
	{
		name:   theInjected,
		what:   "`handfast run --route master --worker-link any`: a server that knows nothing of handfast, its calls of accept are answered",
		lacks:  nothing,
		about:  revision,
		start:  startInjected("--route", "master"),
		reload: signalBalancer,
	},
	{
		name:  theInjected + "-behind-proxy",
		what:  "`handfast run --behind-proxy --worker-link any`",
		lacks: nothing,
		about: revision,
		start: startInjected("--behind-proxy"),
	},
	{
		name:   theStandard,
		what:   "HAProxy, `mode tcp`, `balance source`",
		files:  2,
		lacks:  lacksHAProxy,
		about:  aboutHAProxy,
		start:  haproxyTCP.start,
		reload: haproxyTCP.reload,
	},
	{
		name:   "nginx-stream",
		what:   "nginx, `stream`, `hash $remote_addr consistent`",
		files:  2,
		lacks:  lacksNginxStream,
		about:  aboutNginx,
		start:  nginxStream.start,
		reload: nginxStream.reload,
	},
	{
		name:  "tcpproxy",
		what:  "a TCP proxy in Go, made of github.com/inetaf/tcpproxy, by a hash of the client's address",
		files: 6, // two sockets, and a pipe in each direction for splice(2)
		needs: tcpproxyBuilt,
		lacks: nothing,
		about: aboutTCPProxy,
		start: startTCPProxy,
	},
	{
		name:  theHTTPProxy,
		what:  "nginx, `proxy_pass`, `ip_hash` of the client, also of the one that `real_ip_header X-Forwarded-For` finds",
		files: 2,
		lacks: lacksNginx,
		about: aboutNginx,
		start: nginxHTTP.start,
	},
	{
		name:  "haproxy-http",
		what:  "HAProxy, `mode http`, `balance source`, also of the one that `set-src hdr(X-Forwarded-For)` finds",
		files: 2,
		lacks: lacksHAProxy,
		about: aboutHAProxy,
		start: haproxyHTTP.start,
	},
	{
		name:  theHashedPool,
		what:  fmt.Sprintf("nginx, `hash $http_x_forwarded_for consistent`, `keepalive %d`: a pool straight to workers on ports of their own", proxyPool),
		files: 2,
		lacks: lacksNginx,
		about: aboutNginx,
		start: nginxPooled.start,
	},
	{
		name:  "haproxy-pool",
		what:  "HAProxy, `balance hdr(X-Forwarded-For)`, `http-reuse always`, straight to workers on ports of their own",
		files: 2,
		lacks: lacksHAProxy,
		about: aboutHAProxy,
		start: haproxyPooled.start,
	},
	{
		name:  "handfast-pool",
		what:  fmt.Sprintf("nginx, `keepalive %d`, before `handfast run --behind-proxy`: workers hand connections back between requests", proxyPool),
		files: 2,
		lacks: lacksNginx,
		about: aboutNginx,
		start: frontedBy(nginxPool("", proxyPool), startServing("--behind-proxy")),
	},
	{
		name:  "handfast-slots",
		what:  fmt.Sprintf("nginx, `hash $http_x_forwarded_for consistent`, `keepalive %d`, before `handfast run --slot-address`: its servers are the slots", proxyPool),
		files: 2,
		lacks: lacksNginx,
		about: aboutNginx,
		start: frontedBySlots(nginxPool(byForwarded, proxyPool)),
	},
	{
		name:  "handfast-pool-off",
		what:  "nginx, a connection for each request, before `handfast run --behind-proxy`",
		files: 2,
		lacks: lacksNginx,
		about: aboutNginx,
		start: frontedBy(nginxPool("", 0), startServing("--behind-proxy")),
	},
}

func nothing() string { return "" }

func unless(there bool, pkg string) string {
	if there {
		return ""
	}
	return pkg
}

func lacksNginx() string   { return unless(program("nginx") != "", "nginx") }
func lacksHAProxy() string { return unless(program("haproxy") != "", "haproxy") }
func lacksNginxStream() string {
	return unless(program("nginx") != "" && nginxStreamModule() != "", "nginx libnginx-mod-stream")
}
func aboutHAProxy() string { return firstLine("haproxy", "-v") }
func aboutNginx() string   { return firstLine("nginx", "-v") }

// program finds a program also where the path of ordinary users does not lead.
func program(name string) string {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	return ""
}

func firstLine(name string, args ...string) string {
	out, _ := exec.Command(program(name), args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func startReuseport(s *stage) error {
	for range s.workers {
		if _, err := s.runWorker(byReuseport, s.address.String()); err != nil {
			return err
		}
	}
	return nil
}

// reloadReuseport has the old workers and the new ones listen together for a
// while. What waits in the queue of a listener that is closed, is reset.
func reloadReuseport(s *stage) error {
	old := s.started
	if err := startReuseport(s); err != nil {
		return err
	}
	if _, err := s.answering(len(old) + s.workers); err != nil {
		return err
	}
	return s.retire(old)
}

func startHandfast(flags ...string) func(*stage) error {
	return func(s *stage) error {
		return s.runHandfast([]string{envWorker + "=" + byMailbox}, flags, s.self)
	}
}

// startInjected starts workers that bind the address themselves, as any server does.
func startInjected(flags ...string) func(*stage) error {
	return func(s *stage) error {
		env := []string{envWorker + "=" + byPort, envAddress + "=" + s.address.String()}
		return s.runHandfast(env, append([]string{"--worker-link", "any"}, flags...), s.self)
	}
}

// runHandfast runs it with workers that are started by command.
func (s *stage) runHandfast(env, flags []string, command ...string) error {
	args := []string{"run", "--admin", "off", "--probation", "0", "--workers", strconv.Itoa(s.workers), "--listen", s.address.String()}
	pid, err := s.run(env, s.handfast, slices.Concat(args, flags, []string{"--"}, command)...)
	s.balancerPIDs = []int{pid}
	return err
}

// signalBalancer asks those that start the workers to replace them.
func signalBalancer(s *stage) error {
	return os.NewSyscallError("kill", unix.Kill(s.balancerPIDs[0], unix.SIGUSR2))
}
