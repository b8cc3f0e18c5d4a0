package programs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServer: servers are known behind what runs them, and so is what they inherit listeners by.
// Rows C2 and D5.
func TestServer(t *testing.T) {
	cfg := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(cfg, []byte("frontend f\n  bind fd@3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		command, name, inherits, one string
		forks                        bool
	}{
		{"gunicorn -w 2 app:app", "gunicorn", "LISTEN_FDS", "-w 1", false},
		{"env X=1 python3.11 -u -m gunicorn app:app", "gunicorn", "LISTEN_FDS", "-w 1", false},
		{"python3 /usr/bin/gunicorn app:app", "gunicorn", "LISTEN_FDS", "-w 1", false},
		{"poetry run gunicorn app:app", "gunicorn", "LISTEN_FDS", "-w 1", false},
		{"uvicorn app:app", "uvicorn", "", "--workers 1", false},
		{"uvicorn --fd 3 app:app", "uvicorn", "--fd", "--workers 1", false},
		{"hypercorn -b fd://3 app:app", "hypercorn", "fd://", "-w 1", false},
		{"bundle exec puma -w 2", "puma", "", "-w 0", false},
		{"/usr/sbin/nginx -c x", "nginx", "NGINX, if it listens on just what --listen names", "", true},
		{"php-fpm8.2 -F", "php-fpm", "FPM_SOCKETS, if it listens on just what --listen names", "", true},
		{"haproxy -db -f " + cfg, "haproxy", "fd@", "", true},
		{"haproxy -db -f /none", "haproxy", "", "", true},
		{"apache2 -DFOREGROUND", "apache", "", "", true},
		{"caddy run", "caddy", "", "", false},
		{"python3 app.py", "", "", "", false},
		{"python3", "", "", "", false},
		{"./gunicorn.sh", "", "", "", false},
	} {
		c := Resolve(strings.Fields(test.command))
		s, ok := c.Server()
		if want := (Server{test.name, test.forks, test.one, test.inherits}); s != want || ok != (test.name != "") {
			t.Errorf("%s: %+v, want %+v", test.command, s, want)
		}
	}
}
