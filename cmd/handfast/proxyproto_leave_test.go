package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// proxyReaders are programs that read PROXY headers themselves, by name, as plainServers are. They answer with their slot
// and the client's address.
var proxyReaders = map[string]func(t *testing.T, dir, address string) []string{
	"gunicorn": func(t *testing.T, dir, address string) []string {
		put(t, dir, "app.py", `
import os
def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [(os.environ['HANDFAST_SLOT'] + ' ' + environ['REMOTE_ADDR']).encode()]
`)
		return []string{trial.Need(t, "gunicorn", "gunicorn"), "--chdir", dir, "--worker-tmp-dir", dir, "--proxy-protocol", "--proxy-allow-from", "127.0.0.1", "-b", address, "app:app"}
	},
	"nginx": func(t *testing.T, dir, address string) []string {
		file := put(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; worker_processes 2; error_log stderr;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen %s proxy_protocol; location / { return 200 "SLOT $proxy_protocol_addr"; } }
}
`, address))
		return []string{"sh", "-c", `mkdir -p $0/$$; sed "s/SLOT/$HANDFAST_SLOT/" $2 > $0/$$.conf
			exec $1 -p $0/$$ -c $0/$$.conf -g "pid $0/$$.pid;"`, dir, trial.Need(t, "nginx", "nginx"), file}
	},
	"haproxy": func(t *testing.T, dir, address string) []string {
		file := put(t, dir, "haproxy.cfg", fmt.Sprintf(`
defaults
    mode http
    timeout connect 5s
    timeout client  1m
    timeout server  1m
frontend clients
    bind %s accept-proxy
    http-request return status 200 content-type text/plain lf-string "%%[env(HANDFAST_SLOT)] %%[src]"
`, address))
		return []string{trial.Need(t, "haproxy", "haproxy"), "-db", "-f", file}
	},
}

// TestProxyProtocolLeave: servers that read PROXY headers themselves see the client's address, and stay with that client,
// also over a reload.
func TestProxyProtocolLeave(t *testing.T) {
	t.Parallel()
	for name, server := range proxyReaders {
		t.Run(name, func(t *testing.T) {
			trial.HAProxy.Need(t)
			dir, err := os.MkdirTemp("", "leave") // which also those can enter that give up their rights
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			os.Chmod(dir, 0o755)
			listen := trial.FreeAddress(t)
			flags := []string{"--proxy-protocol", "--proxy-protocol-mode", "leave", "--worker-link", "any", "--trusted-proxies", "127.0.0.1"}
			handfast, _ := trial.BalanceAt(t, listen, flags, server(t, dir, listen)...)
			proxy, address := trial.HAProxy.Start(t, "../../examples/proxies/haproxy-send-proxy.cfg", listen)
			seeClients(t, address)
			handfast.Process.Signal(unix.SIGUSR2)
			handfast.AwaitReady(2 * trial.Workers)
			seeClients(t, address)
			proxy.StopWith(trial.HAProxy.Stop)
			if name != "gunicorn" { // which reads version 1 alone (20.1)
				proxy, address := trial.HAProxy.Start(t, "../../examples/proxies/haproxy-send-proxy-v2.cfg", listen)
				seeClients(t, address)
				proxy.StopWith(trial.HAProxy.Stop)
			}
			handfast.Stop()
		})
	}
}

// seeClients fails unless each client's slot answers with the client's address.
func seeClients(t *testing.T, address string) {
	t.Helper()
	const clients = 40
	for i := range clients {
		from := source(i)
		client := trial.ClientAt(from)
		response, err := client.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		client.CloseIdleConnections() // or HAProxy, told to stop, waits a minute for another request
		if want := fmt.Sprint(slotOf(from, trial.Workers), " ", from); err != nil || response.StatusCode != http.StatusOK || string(body) != want {
			t.Fatalf("client %v: %s %q, error %v; want %q", from, response.Status, body, err, want)
		}
	}
}
