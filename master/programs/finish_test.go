package programs

import (
	"strings"
	"syscall"
	"testing"
)

// TestDrainSignal is row A7: programs that are known to finish on a signal get it, whatever starts
// them, and all others none.
func TestDrainSignal(t *testing.T) {
	const none = syscall.Signal(0)
	for command, want := range map[string]syscall.Signal{
		"/usr/sbin/nginx":          syscall.SIGQUIT,
		"php-fpm8.2 -F":            syscall.SIGQUIT,
		"apache2 -DFOREGROUND":     syscall.SIGWINCH,
		"httpd":                    syscall.SIGWINCH,
		"haproxy -db":              syscall.SIGUSR1,
		"lighttpd -D":              syscall.SIGINT,
		"h2o":                      syscall.SIGTERM,
		"gunicorn -b :80 app":      syscall.SIGTERM,
		"hypercorn -w 2 app":       syscall.SIGINT,
		"unicorn -l 80":            syscall.SIGQUIT,
		"env A=1 bundle exec puma": syscall.SIGTERM,
		"ruby /usr/bin/puma ru":    syscall.SIGTERM,

		"/usr/bin/python3 -m uvicorn app:app":      syscall.SIGTERM,
		"python3.11 -u /usr/bin/gunicorn app:app":  syscall.SIGTERM,
		"env A=1 nice -n 5 nohup gunicorn app:app": syscall.SIGTERM,

		"php8.2 -S 0.0.0.0:80":       none,
		"python3 -m http.server":     none,
		"python3 -c import_gunicorn": none,
		"python3":                    none,
		"perl app.pl":                none,
		"java -jar app.jar":          none,
		"./server":                   none,
		"node server.js":             none,
		"redis-server":               none,
		"daphne app:app":             none,
		"waitress-serve app:app":     none,
		"env":                        none,
		"":                           none,
	} {
		if got, name, known := DrainSignal(strings.Fields(command)); got != want || known != (want != none) {
			t.Errorf("%q: %v, %q, %v, want %v", command, got, name, known, want)
		}
	}
	for want, command := range map[string][]string{
		"gunicorn": {"sh", "-c", "exec gunicorn app:app"},
		"uvicorn":  {"bash", "-ec", `exec "$@"`, "sh", "python3", "-m", "uvicorn", "app:app"},
		"sh":       {"sh", "-c", "gunicorn app:app; true"},
	} {
		if _, got, _ := DrainSignal(command); got != want {
			t.Errorf("%q runs %s, want %s", command, got, want)
		}
	}
}
