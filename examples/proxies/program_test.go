package proxies_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/examples/trial"
)

// program is a proxy.
type program struct {
	name   string    // of its executable, and of Debian's package
	listen [2]string // what its configurations say, and the same with the place of an address
	stop   syscall.Signal
	args   func(dir, file string) []string // to stay in the foreground, with its files in dir
	insert [][2]string                     // what cannot be said by arguments: behind the first text, the second
}

var (
	nginx = program{
		name:   "nginx",
		listen: [2]string{"listen 80;", "listen %s;"},
		stop:   syscall.SIGTERM,
		args: func(dir, file string) []string {
			global := "daemon off; pid nginx.pid; error_log stderr;"
			if os.Getuid() == 0 {
				global += " user root;" // another one may not enter dir
			}
			return []string{"-p", dir, "-c", file, "-e", "stderr", "-g", global}
		},
		insert: [][2]string{{"http {", `
			access_log off;
			client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
			uwsgi_temp_path uwsgi; scgi_temp_path scgi;`}},
	}
	haproxy = program{
		name:   "haproxy",
		listen: [2]string{"bind :80", "bind %s"},
		stop:   syscall.SIGUSR1, // SIGTERM ends it with status 143
		args:   func(dir, file string) []string { return []string{"-db", "-f", file} },
	}
	apache = program{
		name:   "apache2",
		listen: [2]string{"Listen 80", "Listen %s"},
		stop:   syscall.SIGTERM,
		args: func(dir, file string) []string {
			return []string{"-DFOREGROUND", "-d", dir, "-f", file, "-C", "ErrorLog /dev/stderr",
				"-C", "PidFile " + filepath.Join(dir, "pid"), "-C", "DefaultRuntimeDir " + dir}
		},
	}
)

// behind is handfast's address in the configurations.
const behind = "127.0.0.1:8080"

// path finds the program also where the path of ordinary users does not lead. Who
// has none may skip the test, but not continuous integration.
func (p program) path(t *testing.T) string {
	t.Helper()
	for _, candidate := range []string{p.name, "/usr/sbin/" + p.name, "/usr/local/sbin/" + p.name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	missing := fmt.Sprintf("%s is not installed; apt-get install %s", p.name, p.name)
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// start runs the program with a configuration of this directory, in which only the
// addresses are others, and returns the one for clients.
func (p program) start(t *testing.T, configuration, handfast string) (process *trial.Process, address string) {
	t.Helper()
	path := p.path(t)
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	address = freeAddress(t)
	config := replace(t, string(text), p.listen[0], fmt.Sprintf(p.listen[1], address))
	config = replace(t, config, behind, handfast)
	for _, insert := range p.insert {
		config = replace(t, config, insert[0], insert[0]+insert[1])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, configuration)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	process = trial.Start(t, path, p.args(dir, file)...)
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

// freeAddress returns a loopback address and port where nobody listens. Since the
// address is one of a million nobody will before it is used.
func freeAddress(t *testing.T) string {
	t.Helper()
	host := netip.AddrFrom4([4]byte{127, byte(64 + rand.IntN(64)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	ln, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
