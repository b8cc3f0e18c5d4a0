package trial

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Nginx runs nginx with a configuration of examples/proxies, in which only the
// addresses are others, before the handfast at that address. It returns the one for clients.
func Nginx(t *testing.T, configuration, handfast string) (p *Process, address string) {
	t.Helper()
	if path := os.Getenv("PATH"); !strings.Contains(path, "/usr/sbin") { // where Debian has it
		t.Setenv("PATH", path+":/usr/sbin")
	}
	nginx := need(t, "nginx", "nginx")
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	address = FreeAddress(t)
	config := string(text)
	for old, with := range map[string]string{
		"listen 80;":     "listen " + address + ";",
		"127.0.0.1:8080": handfast,
		"events {}":      "events { worker_connections 4096; }", // long polling takes 4 for a client
		// What cannot be said by arguments, so that it writes below its directory alone.
		"http {": `http { access_log off; client_body_temp_path body; proxy_temp_path proxy;
			fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;`,
	} {
		if strings.Count(config, old) != 1 {
			t.Fatalf("%s does not have %q once", configuration, old)
		}
		config = strings.Replace(config, old, with, 1)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	global := "daemon off; pid nginx.pid; error_log stderr;"
	if os.Getuid() == 0 {
		global += " user root;" // another one may not enter dir
	}
	p = Start(t, nginx, "-p", dir, "-c", file, "-e", "stderr", "-g", global)
	p.AwaitListening(address)
	return p, address
}
