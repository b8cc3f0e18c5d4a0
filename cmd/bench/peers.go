package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// peer is one way for connections to reach the workers.
type peer struct {
	name    string
	what    string
	files   int           // descriptors that the balancer holds for an open connection
	modules bool          // whether it needs those that npm installs
	lacks   func() string // the package to install, empty: nothing
	about   func() string // the version
	start   func(*stage) error
}

func (p peer) String() string { return p.name }

// peers is the table of peers.
var peers = slices.Concat(goPeers, nodePeers)

// goPeers are those with Go workers.
var goPeers = []peer{
	{
		name:  theLimit,
		what:  "the workers accept for themselves (SO_REUSEPORT): no balancer, no stickiness, the limit",
		lacks: nothing,
		about: func() string { return "" },
		start: startReuseport,
	},
	{
		name:  theSteered,
		what:  "`handfast run --route kernel`, the default: each slot's worker accepts for itself",
		lacks: nothing,
		about: revision,
		start: startHandfast("--route", "kernel"),
	},
	{
		name:  theHandoff,
		what:  "`handfast run --route master`: the master accepts and hands off",
		lacks: nothing,
		about: revision,
		start: startHandfast("--route", "master"),
	},
	{
		name:  "handfast-behind-proxy",
		what:  "`handfast run --behind-proxy`",
		lacks: nothing,
		about: revision,
		start: startHandfast("--behind-proxy"),
	},
	{
		name:  theStandard,
		what:  "HAProxy, `mode tcp`, `balance source`",
		files: 2,
		lacks: lacksHAProxy,
		about: aboutHAProxy,
		start: startHAProxy("mode tcp", "balance source"),
	},
	{
		name:  "nginx-stream",
		what:  "nginx, `stream`, `hash $remote_addr consistent`",
		files: 2,
		lacks: func() string {
			return unless(program("nginx") != "" && nginxStream() != "", "nginx libnginx-mod-stream")
		},
		about: aboutNginx,
		start: startNginx(nginxStreamConfig),
	},
	{
		name:  theHTTPProxy,
		what:  "nginx, `proxy_pass`, `ip_hash` of the client that `real_ip_header X-Forwarded-For` finds",
		files: 2,
		lacks: func() string { return unless(program("nginx") != "", "nginx") },
		about: aboutNginx,
		start: startNginx(nginxHTTPConfig),
	},
	{
		name:  "haproxy-http",
		what:  "HAProxy, `mode http`, `balance hdr(X-Forwarded-For)`",
		files: 2,
		lacks: lacksHAProxy,
		about: aboutHAProxy,
		start: startHAProxy("mode http", "balance hdr(X-Forwarded-For)", "option forwardfor",
			"option http-server-close", "http-reuse never"),
	},
}

func nothing() string { return "" }

func unless(there bool, pkg string) string {
	if there {
		return ""
	}
	return pkg
}

func lacksHAProxy() string { return unless(program("haproxy") != "", "haproxy") }
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

func startHandfast(flags ...string) func(*stage) error {
	return func(s *stage) error {
		return s.runHandfast([]string{envWorker + "=" + byMailbox}, flags, s.self)
	}
}

// runHandfast runs it with workers that are started by command.
func (s *stage) runHandfast(env, flags []string, command ...string) error {
	args := []string{"run", "--admin", "off", "--workers", strconv.Itoa(s.workers), "--listen", s.address.String()}
	pid, err := s.run(env, s.handfast, slices.Concat(args, flags, []string{"--"}, command)...)
	s.balancerPIDs = []int{pid}
	return err
}

// startPortWorkers starts workers that listen on a port each, for proxies. They
// listen when it returns: nginx would not try one that has refused it for 10 s.
func startPortWorkers(s *stage) (addresses []string, err error) {
	for range s.workers {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		if _, err := s.runWorker(byPort, address.String()); err != nil {
			return nil, err
		}
		addresses = append(addresses, address.String())
	}
	return addresses, s.until(func(ctx context.Context) error {
		for _, address := range addresses {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	})
}

// startHAProxy starts it with what its configuration says of the proxying.
func startHAProxy(lines ...string) func(*stage) error {
	return func(s *stage) error {
		workers, err := startPortWorkers(s)
		if err != nil {
			return err
		}
		config := fmt.Sprintf(`global
	maxconn %d
defaults
	timeout connect 5s
	timeout client 10m
	timeout server 10m
listen bench
	bind %s
	%s
`, s.canHold()+s.concurrency, s.address, strings.Join(lines, "\n\t"))
		for i, worker := range workers {
			config += fmt.Sprintf("\tserver worker%d %s\n", i, worker)
		}
		path, err := s.write("haproxy.cfg", config)
		if err != nil {
			return err
		}
		pid, err := s.run(nil, program("haproxy"), "-db", "-f", path)
		s.balancerPIDs = []int{pid}
		return err
	}
}

// nginxStream finds nginx's stream module, which distributions package apart.
func nginxStream() string {
	for _, lib := range []string{"/usr/lib", "/usr/lib64", "/usr/share", "/usr/local"} {
		path := filepath.Join(lib, "nginx/modules/ngx_stream_module.so")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// startNginx starts it with what its configuration says of the proxying, given the
// address to listen on and the workers' as "server" directives.
func startNginx(proxying func(address, servers string) string) func(*stage) error {
	return func(s *stage) error {
		workers, err := startPortWorkers(s)
		if err != nil {
			return err
		}
		servers := ""
		for _, worker := range workers {
			servers += fmt.Sprintf("server %s; ", worker)
		}
		processes := runtime.NumCPU()
		config := fmt.Sprintf(`daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr;
%sevents { worker_connections %d; }
`, processes, s.dir, proxying(s.address.String(), servers), s.files)
		path, err := s.write("nginx.conf", config)
		if err != nil {
			return err
		}
		pid, err := s.run(nil, program("nginx"), "-p", s.dir, "-e", "stderr", "-c", path)
		if err != nil {
			return err
		}
		if err := s.await(); err != nil {
			return err
		}
		// The first of its processes may have answered before the last was there.
		s.balancerPIDs, err = s.family(pid, processes)
		return err
	}
}

func nginxStreamConfig(address, servers string) string {
	return fmt.Sprintf(`load_module %s;
stream {
	upstream workers { hash $remote_addr consistent; %s}
	server { listen %s; proxy_pass workers; }
}
`, nginxStream(), servers, address)
}

// nginxHTTPConfig names files for request and answer bodies, which are not used
// here, because the usual ones may not be the user's to create.
func nginxHTTPConfig(address, servers string) string {
	return fmt.Sprintf(`http {
	access_log off;
	client_body_temp_path temp;
	proxy_temp_path temp;
	fastcgi_temp_path temp;
	uwsgi_temp_path temp;
	scgi_temp_path temp;
	set_real_ip_from 127.0.0.0/8;
	real_ip_header X-Forwarded-For;
	upstream workers { ip_hash; %s}
	server {
		listen %s;
		location / {
			proxy_pass http://workers;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		}
	}
}
`, servers, address)
}
