package trial

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Proxy is one of the programs that handfast is tried behind.
type Proxy struct {
	Name   string                                   // of its executable
	pkg    string                                   // of Debian; empty: it has the same name; "-": Debian has none
	listen [2]string                                // what its configurations say, and the same with the places of an address, its host and its port
	Stop   syscall.Signal                           // ends it with status 0
	args   func(dir, file, address string) []string // to stay in the foreground, with its files in dir
	Insert [][2]string                              // what cannot be said by arguments: behind the first text, the second
	Whole  string                                   // a configuration, with the place of what handfast proxy-config prints
	reload func(f *Front) error                     // of its configuration
}

// The proxies.
var (
	Nginx = Proxy{
		Name:   "nginx",
		listen: [2]string{"listen 80;", "listen %[1]s;"},
		Stop:   syscall.SIGTERM,
		args: func(dir, file, address string) []string {
			global := "daemon off; pid nginx.pid; error_log stderr;"
			if os.Getuid() == 0 {
				global += " user root;" // another one may not enter dir
			}
			return []string{"-p", dir, "-c", file, "-e", "stderr", "-g", global}
		},
		Insert: [][2]string{{"http {", `
			access_log off;
			client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
			uwsgi_temp_path uwsgi; scgi_temp_path scgi;`}},
		Whole:  "worker_processes 2; events { worker_connections 4096; } http {\n%s}\n",
		reload: func(f *Front) error { return f.Process.Process.Signal(syscall.SIGHUP) },
	}
	HAProxy = Proxy{
		Name:   "haproxy",
		listen: [2]string{"bind :80", "bind %[1]s"},
		Stop:   syscall.SIGUSR1, // SIGTERM ends it with status 143
		args:   func(dir, file, address string) []string { return []string{"-db", "-f", file} },
	}
	// HAProxyMaster is HAProxy with a process that can reload.
	HAProxyMaster = Proxy{
		Name:   HAProxy.Name,
		listen: HAProxy.listen,
		Stop:   HAProxy.Stop,
		args:   func(dir, file, address string) []string { return []string{"-W", "-f", file} },
		Whole:  "%s",
		reload: func(f *Front) error { return f.Process.Process.Signal(syscall.SIGUSR2) },
	}
	Apache = Proxy{
		Name:   "apache2",
		listen: [2]string{"Listen 80", "Listen %[1]s"},
		Stop:   syscall.SIGTERM,
		args: func(dir, file, address string) []string {
			return []string{"-DFOREGROUND", "-d", dir, "-f", file, "-C", "ErrorLog /dev/stderr",
				"-C", "PidFile " + filepath.Join(dir, "pid"), "-C", "DefaultRuntimeDir " + dir}
		},
		Whole: "ServerName localhost\nUser www-data\nGroup www-data\nListen 80\n" + apacheModules("mpm_event", "authz_core", "headers", "setenvif",
			"proxy", "proxy_http", "proxy_balancer", "lbmethod_byrequests", "slotmem_shm") + "%s",
		reload: func(f *Front) error { return f.Process.Process.Signal(syscall.SIGUSR1) },
	}
	Caddy = Proxy{
		Name:   "caddy",
		listen: [2]string{"\n:80 {", "\n:%[3]s {\nbind %[2]s"},
		Stop:   syscall.SIGTERM,
		args: func(dir, file, address string) []string {
			return []string{"run", "--adapter", "caddyfile", "--config", file}
		},
		Whole: "{\nadmin unix/caddy.sock\n}\n%s",
		reload: func(f *Front) error {
			cmd := exec.Command(f.Path, "reload", "--adapter", "caddyfile", "--config", f.file)
			cmd.Dir, cmd.Env = f.Dir, f.Env
			return output(cmd)
		},
	}
	H2O = Proxy{
		Name:   "h2o",
		listen: [2]string{"listen: 80\n", "listen:\n  host: %[2]s\n  port: %[3]s\n"},
		Stop:   syscall.SIGTERM,
		args:   func(dir, file, address string) []string { return []string{"-m", "worker", "-c", file} },
	}
	Varnish = Proxy{
		Name: "varnishd",
		pkg:  "varnish",
		Stop: syscall.SIGTERM,
		args: func(dir, file, address string) []string {
			return []string{"-F", "-n", filepath.Join(dir, "varnish"), "-j", "none", "-T", "none", "-s", "malloc,16m", "-p", "thread_pool_min=20", "-a", address, "-f", file}
		},
	}
	Traefik = Proxy{
		Name: "traefik",
		pkg:  "-",
		Stop: syscall.SIGTERM,
		args: func(dir, file, address string) []string {
			return []string{"--providers.file.filename=" + file, "--global.checknewversion=false", "--entrypoints.web.address=" + address}
		},
		Whole:  "%s",
		reload: func(*Front) error { return nil }, // it watches its file
	}
)

func apacheModules(names ...string) (lines string) {
	for _, name := range names {
		lines += fmt.Sprintf("LoadModule %s_module /usr/lib/apache2/modules/mod_%[1]s.so\n", name)
	}
	return lines
}

// behind is handfast's address in the configurations.
const behind = "127.0.0.1:8080"

// Need returns the path of the program, or skips the test.
func (p Proxy) Need(t *testing.T) string {
	t.Helper()
	if p.pkg == "-" {
		path, err := exec.LookPath(p.Name)
		if err != nil {
			t.Skipf("%s is not installed", p.Name)
		}
		return path
	}
	return Need(t, p.Name, cmp.Or(p.pkg, p.Name))
}

// Start runs the program with a configuration, in which only the addresses are others,
// and returns the one for clients.
func (p Proxy) Start(t *testing.T, configuration, handfast string) (process *Process, address string) {
	t.Helper()
	p.Need(t)
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	f := p.Run(t, replace(t, string(text), behind, handfast))
	return f.Process, f.Address
}

// Front is a proxy that runs.
type Front struct {
	*Process
	Address string // for clients

	proxy Proxy
	file  string // its configuration; Traefik takes no name without .yaml
}

// Run runs the program with the text of a configuration, in which only the address for clients is another.
func (p Proxy) Run(t *testing.T, text string) *Front {
	t.Helper()
	dir := t.TempDir()
	f := &Front{Address: FreeAddress(t), proxy: p, file: filepath.Join(dir, "configuration.yaml")}
	f.write(text, t)
	cmd := exec.Command(p.Need(t), p.args(dir, f.file, f.Address)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	f.Process = StartCmd(t, cmd)
	f.AwaitListening(f.Address)
	return f
}

// Reload has it read another text. It need not have done so when Reload returns.
func (f *Front) Reload(text string) {
	f.t.Helper()
	f.write(text, f.t)
	if err := f.proxy.reload(f); err != nil {
		f.t.Fatal(err)
	}
}

func (f *Front) write(text string, t *testing.T) {
	t.Helper()
	host, port, _ := net.SplitHostPort(f.Address)
	if old := f.proxy.listen[0]; old != "" {
		text = replace(t, text, old, fmt.Sprintf(f.proxy.listen[1], f.Address, host, port))
	}
	for _, insert := range f.proxy.Insert {
		text = replace(t, text, insert[0], insert[0]+insert[1])
	}
	if err := os.WriteFile(f.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace wants to find old once.
func replace(t *testing.T, text, old, with string) string {
	t.Helper()
	if n := strings.Count(text, old); n != 1 {
		t.Fatalf("the configuration has %q %d times, want it once", old, n)
	}
	return strings.Replace(text, old, with, 1)
}
