package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// listensEverywhere are programs that listen on a port of all addresses, and whether of IPv4 alone.
// PORT stands for it.
var listensEverywhere = map[string]struct {
	onlyIPv4 bool
	command  []string
}{
	"python": {true, append(slices.Clone(pythonServes), "0.0.0.0/PORT")},
	"dual": {false, []string{"/usr/bin/python3", "-c", `
import http.server, sys
class Server(http.server.ThreadingHTTPServer): address_family = 10
Server(('::', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()`, "PORT"}},
}

// Row C3: where the workers listen on IPv4 only the kernel refuses IPv6, so that who comes to
// localhost by IPv6 goes on to IPv4. Where they listen on both, both are served.
func TestIPv4Only(t *testing.T) {
	t.Parallel()
	for name, server := range listensEverywhere {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := portOf(t, trial.FreeAddress(t))
			command := withPort(server.command, port)
			b := runs(t, append([]string{"--workers", "2", "--listen", ":" + port, "--"}, command...)...)
			b.awaitCount("worker ready", 2)
			if server.onlyIPv4 {
				b.says("not listening on IPv6 any more", "[::]:"+port)
			}
			reaches(t, "127.0.0.1", port, true)
			reaches(t, "::1", port, !server.onlyIPv4)
			if status := b.log("not listening on IPv6 any more"); len(status) > 0 != server.onlyIPv4 {
				t.Errorf("it is said %d times", len(status))
			}
		})
	}
}

// Row C3: the workers that serve first decide. Later ones that listen on both are served by IPv4, also
// when the master's program is another one by then; later ones that listen on IPv4 only where the
// first ones listened on both go on to get both.
func TestFamiliesChange(t *testing.T) {
	t.Parallel()
	const server = `
import http.server, os, sys
v6 = (os.environ['HANDFAST_GENERATION'] == '1') == (sys.argv[1] == 'both')
class Server(http.server.ThreadingHTTPServer): address_family = 10 if v6 else 2
Server(('::' if v6 else '0.0.0.0', int(sys.argv[2])), http.server.SimpleHTTPRequestHandler).serve_forever()`
	for first, both := range map[string]bool{"IPv4": false, "both": true} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			port := portOf(t, trial.FreeAddress(t))
			b := runs(t, "--workers", "1", "--probation", "0s", "--listen", ":"+port, "--", "/usr/bin/python3", "-c", server, first, port)
			b.await("worker ready")
			if !both {
				b.await("not listening on IPv6 any more")
			}
			look := func() {
				t.Helper()
				reaches(t, "127.0.0.1", port, true)
				reaches(t, "::1", port, both)
			}
			look()
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			look()
			b.signal(unix.SIGHUP)
			b.await("upgraded")
			look()
			b.signal(unix.SIGUSR2)
			b.awaitCount("reload finished", 2)
			look()
		})
	}
}

// reaches makes a request to a port of an address, which is answered, or refused by the kernel.
func reaches(t *testing.T, host, port string, works bool) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + net.JoinHostPort(host, port))
	if err == nil {
		response.Body.Close()
	}
	if works != (err == nil && response.StatusCode == http.StatusOK) || !works && (err == nil || !strings.Contains(err.Error(), "connection refused")) {
		t.Errorf("%s: %+v, %v", host, response, err)
	}
}

func withPort(command []string, port string) (all []string) {
	for _, arg := range command {
		all = append(all, strings.ReplaceAll(arg, "PORT", port))
	}
	return all
}

// navigate goes to a URL and returns the page's text, or what went wrong.
func (b *browser) navigate(url string) string {
	b.t.Helper()
	var result struct{ ErrorText string }
	if err := json.Unmarshal(b.call("Page.navigate", map[string]any{"url": url}), &result); err != nil {
		b.t.Fatal(err)
	}
	if result.ErrorText != "" {
		return result.ErrorText
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if b.evaluate("document.readyState + ' ' + location.href") == "complete "+url {
			return b.evaluate("document.body.innerText")
		}
	}
	return "not loaded"
}

// Row C3: http://localhost works in a browser whenever it works without handfast, with the --listen that
// the server's own address suggests.
func TestLocalhostInBrowser(t *testing.T) {
	t.Parallel()
	const gunicorn = `def app(environ, start):
    start('200 OK', [('Content-Length', '2')]); return [b'ok']
`
	dir := t.TempDir()
	noError(t, os.WriteFile(dir+"/wsgi.py", []byte(gunicorn), 0o644))
	noError(t, os.WriteFile(dir+"/index.php", []byte("ok"), 0o644))
	noError(t, os.WriteFile(dir+"/config.ru", []byte("run ->(env) { [200, {}, ['ok']] }"), 0o644))
	page := browse(t, "about:blank")
	for _, test := range []struct{ listen, command string }{
		{":PORT", "gunicorn --chdir DIR -b :PORT wsgi:app"},
		{"127.0.0.1:PORT", "gunicorn --chdir DIR -b 127.0.0.1:PORT wsgi:app"},
		{":PORT", "gunicorn --chdir DIR -b [::]:PORT wsgi:app"},
		{"[::1]:PORT", "gunicorn --chdir DIR -b [::1]:PORT wsgi:app"},
		{":PORT", "php -S 0.0.0.0:PORT -t DIR"},
		{":PORT", "puma -b tcp://0.0.0.0:PORT DIR/config.ru"},
		{":PORT", "node -e require('http').createServer((q,r)=>{r.end('ok')}).listen(PORT)"},
		{"", "gunicorn --chdir DIR -b :PORT wsgi:app"},
		{"", "gunicorn --chdir DIR -b 127.0.0.1:PORT wsgi:app"},
		{"", "gunicorn --chdir DIR -b [::]:PORT wsgi:app"},
		{"", "gunicorn --chdir DIR -b [::1]:PORT wsgi:app"},
		{"", "php -S localhost:PORT -t DIR"},
		{"localhost:PORT", "node -e require('http').createServer((q,r)=>{r.end('ok')}).listen(PORT,'localhost')"},
	} {
		t.Run(test.listen+" "+test.command, func(t *testing.T) {
			program, _, _ := strings.Cut(test.command, " ")
			if _, err := exec.LookPath(program); err != nil {
				t.Skip(err)
			}
			port := portOf(t, trial.FreeAddress(t))
			words := strings.Fields(strings.NewReplacer("PORT", port, "DIR", dir).Replace(test.command))
			args := []string{"--workers", "1"}
			if test.listen != "" {
				args = append(args, "--listen", strings.ReplaceAll(test.listen, "PORT", port))
			}
			b := runs(t, append(append(args, "--"), words...)...)
			b.await("worker ready")
			if !eventually(func() bool { return page.navigate("http://localhost:"+port+"/") == "ok" }) {
				t.Errorf("the page shows %q", page.navigate("http://localhost:"+port+"/"))
			}
		})
	}
}
