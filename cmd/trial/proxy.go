package trial

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Proxy is one of the programs that examples/proxies has configurations of.
type Proxy struct {
	name   string                          // of its executable, and of Debian's package
	listen [2]string                       // what its configurations say, and the same with the place of an address
	Stop   syscall.Signal                  // ends it with status 0
	args   func(dir, file string) []string // to stay in the foreground, with its files in dir
	Insert [][2]string                     // what cannot be said by arguments: behind the first text, the second
}

// The proxies.
var (
	Nginx = Proxy{
		name:   "nginx",
		listen: [2]string{"listen 80;", "listen %s;"},
		Stop:   syscall.SIGTERM,
		args: func(dir, file string) []string {
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
	}
	HAProxy = Proxy{
		name:   "haproxy",
		listen: [2]string{"bind :80", "bind %s"},
		Stop:   syscall.SIGUSR1, // SIGTERM ends it with status 143
		args:   func(dir, file string) []string { return []string{"-db", "-f", file} },
	}
	Apache = Proxy{
		name:   "apache2",
		listen: [2]string{"Listen 80", "Listen %s"},
		Stop:   syscall.SIGTERM,
		args: func(dir, file string) []string {
			return []string{"-DFOREGROUND", "-d", dir, "-f", file, "-C", "ErrorLog /dev/stderr",
				"-C", "PidFile " + filepath.Join(dir, "pid"), "-C", "DefaultRuntimeDir " + dir}
		},
	}
)

// behind is handfast's address in the configurations.
const behind = "127.0.0.1:8080"

// Need returns the path of the program, or skips the test.
func (p Proxy) Need(t *testing.T) string {
	t.Helper()
	return Need(t, p.name, p.name)
}

// Start runs the program with a configuration, in which only the addresses are others,
// and returns the one for clients.
func (p Proxy) Start(t *testing.T, configuration, handfast string) (process *Process, address string) {
	t.Helper()
	path := p.Need(t)
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	address = FreeAddress(t)
	config := replace(t, string(text), p.listen[0], fmt.Sprintf(p.listen[1], address))
	config = replace(t, config, behind, handfast)
	for _, insert := range p.Insert {
		config = replace(t, config, insert[0], insert[0]+insert[1])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, filepath.Base(configuration))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	process = Start(t, path, p.args(dir, file)...)
	process.AwaitListening(address)
	return process, address
}

// replace wants to find old once.
func replace(t *testing.T, text, old, with string) string {
	t.Helper()
	if n := strings.Count(text, old); n != 1 {
		t.Fatalf("the configuration has %q %d times, want it once", old, n)
	}
	return strings.Replace(text, old, with, 1)
}
