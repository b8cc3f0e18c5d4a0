package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The proxies stand before workers that listen on a port each.

// startPortWorkers starts the workers of a proxy, each by run. They listen when it returns:
// nginx would not try one that has refused it for 10 s.
func startPortWorkers(s *stage, run func(address string) (pid int, err error)) (addresses []string, err error) {
	for range s.workers {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		if _, err := run(address.String()); err != nil {
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

// proxy is a proxy that forks: it reads a configuration file, again at a signal,
// and then replaces the processes that do the work.
type proxy struct {
	config    func(s *stage, workers []string) string
	command   func(s *stage, config string) (path string, args []string)
	processes int // that do the work
	again     unix.Signal
}

func (p proxy) start(s *stage) error {
	return p.startBefore(s, s.runPortWorker)
}

// startBefore starts workers by run, and the proxy before them.
func (p proxy) startBefore(s *stage, run func(address string) (int, error)) error {
	workers, err := startPortWorkers(s, run)
	if err != nil {
		return err
	}
	return p.runBefore(s, workers...)
}

// runBefore starts the proxy itself.
func (p proxy) runBefore(s *stage, servers ...string) error {
	config, err := s.write("proxy.conf", p.config(s, servers))
	if err != nil {
		return err
	}
	path, args := p.command(s, config)
	pid, err := s.run(nil, path, args...)
	if err != nil {
		return err
	}
	// The first process may answer before the last is there.
	s.balancerPIDs, err = s.family(pid, p.processes, nil)
	return err
}

// reload starts new workers, names them to the proxy, and stops the old ones when
// no process of the proxy is left that knows them.
func (p proxy) reload(s *stage) error {
	old := s.started[:s.workers]
	master := s.balancerPIDs[len(s.balancerPIDs)-1]
	workers, err := startPortWorkers(s, s.runPortWorker)
	if err != nil {
		return err
	}
	if _, err := s.write("proxy.conf", p.config(s, workers)); err != nil {
		return err
	}
	if err := unix.Kill(master, p.again); err != nil {
		return os.NewSyscallError("kill", err)
	}
	s.balancerPIDs, err = s.family(master, p.processes, s.balancerPIDs[:p.processes])
	if err != nil {
		return err
	}
	return s.retire(old)
}

var (
	haproxyTCP  = haproxy("mode tcp", "balance source")
	haproxyHTTP = haproxy("mode http", "balance source", "http-request set-src hdr(X-Forwarded-For)",
		"option forwardfor", "option http-server-close", "http-reuse never")
)

// haproxy is HAProxy in its master-worker mode, with what its configuration says
// of the proxying.
func haproxy(lines ...string) proxy {
	return proxy{
		config: func(s *stage, workers []string) string {
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
			return config
		},
		command: func(_ *stage, config string) (string, []string) {
			return program("haproxy"), []string{"-W", "-db", "-f", config}
		},
		processes: 1,
		again:     unix.SIGUSR2,
	}
}

var (
	nginxStream = nginx(nginxStreamConfig)
	nginxHTTP   = nginx(nginxHTTPConfig)
)

// nginx is nginx with what its configuration says of the proxying, given the
// address to listen on and the workers' as "server" directives.
func nginx(proxying func(address, servers string) string) proxy {
	return proxy{
		config: func(s *stage, workers []string) string {
			servers := ""
			for _, worker := range workers {
				servers += fmt.Sprintf("server %s; ", worker)
			}
			return fmt.Sprintf(`daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr;
%sevents { worker_connections %d; }
`, runtime.NumCPU(), s.dir, proxying(s.address.String(), servers), s.files)
		},
		command: func(s *stage, config string) (string, []string) {
			return program("nginx"), []string{"-p", s.dir, "-e", "stderr", "-c", config}
		},
		processes: runtime.NumCPU(),
		again:     unix.SIGHUP, // what nginx -s reload sends
	}
}

// nginxStreamModule finds nginx's stream module, which distributions package apart.
func nginxStreamModule() string {
	for _, lib := range []string{"/usr/lib", "/usr/lib64", "/usr/share", "/usr/local"} {
		path := filepath.Join(lib, "nginx/modules/ngx_stream_module.so")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func nginxStreamConfig(address, servers string) string {
	return fmt.Sprintf(`load_module %s;
stream {
	upstream workers { hash $remote_addr consistent; %s}
	server { listen %s; proxy_pass workers; }
}
`, nginxStreamModule(), servers, address)
}

// nginxBodies names files for request and answer bodies, because the usual ones may not be the user's to create.
const nginxBodies = `	client_body_temp_path temp;
	proxy_temp_path temp;
	fastcgi_temp_path temp;
	uwsgi_temp_path temp;
	scgi_temp_path temp;
`

// nginxHTTPConfig passes WebSockets on as nginx's manual has it, and keeps a large answer from files.
func nginxHTTPConfig(address, servers string) string {
	return fmt.Sprintf(`http {
	access_log off;
%s	proxy_max_temp_file_size 0;
	set_real_ip_from 127.0.0.0/8;
	real_ip_header X-Forwarded-For;
	map $http_upgrade $connection_upgrade { default upgrade; '' close; }
	upstream workers { ip_hash; %s}
	server {
		listen %s;
		location / {
			proxy_pass http://workers;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		}
	}
}
`, nginxBodies, servers, address)
}
