package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// peer is one way for connections to reach the workers.
type peer struct {
	name  string
	what  string
	files int           // descriptors that the balancer holds for an open connection
	lacks func() string // the package to install, empty: nothing
	about func() string // the version
	start func(*stage) error
}

func (p peer) String() string { return p.name }

// peers is the table of peers.
var peers = []peer{
	{
		name:  theLimit,
		what:  "the workers accept for themselves (SO_REUSEPORT): no balancer, no stickiness, the limit",
		lacks: nothing,
		about: func() string { return "" },
		start: startReuseport,
	},
	{
		name:  "handfast",
		what:  "`handfast run`",
		lacks: nothing,
		about: revision,
		start: startHandfast,
	},
	{
		name:  theStandard,
		what:  "HAProxy, `mode tcp`, `balance source`",
		files: 2,
		lacks: func() string { return unless(program("haproxy") != "", "haproxy") },
		about: func() string { return firstLine("haproxy", "-v") },
		start: startHAProxy,
	},
	{
		name:  "nginx-stream",
		what:  "nginx, `stream`, `hash $remote_addr consistent`",
		files: 2,
		lacks: func() string {
			return unless(program("nginx") != "" && nginxStream() != "", "nginx libnginx-mod-stream")
		},
		about: func() string { return firstLine("nginx", "-v") },
		start: startNginx,
	},
}

func nothing() string { return "" }

func unless(there bool, pkg string) string {
	if there {
		return ""
	}
	return pkg
}

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

func startHandfast(s *stage) error {
	env := []string{envWorker + "=" + byMailbox}
	pid, err := s.run(env, s.handfast, "run", "--workers", strconv.Itoa(s.workers), "--listen", s.address.String(), "--", s.self)
	s.balancerPIDs = []int{pid}
	return err
}

// startPortWorkers starts workers that listen on a port each, for proxies.
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
	return addresses, nil
}

func startHAProxy(s *stage) error {
	workers, err := startPortWorkers(s)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`global
	maxconn %d
defaults
	mode tcp
	balance source
	timeout connect 5s
	timeout client 10m
	timeout server 10m
listen bench
	bind %s
`, s.canHold()+s.concurrency, s.address)
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

func startNginx(s *stage) error {
	workers, err := startPortWorkers(s)
	if err != nil {
		return err
	}
	servers := ""
	for _, worker := range workers {
		servers += fmt.Sprintf("server %s; ", worker)
	}
	config := fmt.Sprintf(`load_module %s;
daemon off;
worker_processes auto;
pid %s/nginx.pid;
error_log stderr;
events { worker_connections %d; }
stream {
	upstream workers { hash $remote_addr consistent; %s}
	server { listen %s; proxy_pass workers; }
}
`, nginxStream(), s.dir, s.files, servers, s.address)
	path, err := s.write("nginx.conf", config)
	if err != nil {
		return err
	}
	pid, err := s.run(nil, program("nginx"), "-p", s.dir, "-e", "stderr", "-c", path)
	if err != nil {
		return err
	}
	// Its workers exist when it serves.
	if err := s.await(); err != nil {
		return err
	}
	s.balancerPIDs, err = children(pid)
	s.balancerPIDs = append(s.balancerPIDs, pid)
	return err
}
