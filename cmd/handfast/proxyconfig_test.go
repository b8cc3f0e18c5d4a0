package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestProxyConfigDescribed: of a handfast that does not run yet, each proxy's configuration has a server for each slot, and says
// which command printed it. That they work is tried in examples/proxies.
func TestProxyConfigDescribed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "handfast.yaml")
	noError(t, os.WriteFile(file, []byte("name: my-shop\nlisten: ':8081'\nslot-address: 127.77.0.16/28\nworkers: 3\nmax-parked: 7\ncommand: [true]\n"), 0o644))
	for _, proxy := range proxies {
		for _, by := range []string{"address", "cookie", "header:X-User"} {
			var out fdtest.Log
			status := run(t.Context(), []string{"handfast", "proxy-config", proxy.name, "--config", file, "--by", by}, &out, &out)
			if strings.HasPrefix(by, "header") && proxy.noHeader {
				if status != exitUsage || !strings.Contains(out.String(), "use --by cookie or --by address") {
					t.Errorf("%s %s: status %d: %s", proxy.name, by, status, &out)
				}
				continue
			}
			if status != exitOK {
				t.Errorf("%s %s: status %d: %s", proxy.name, by, status, &out)
			}
			for _, want := range []string{"127.77.0.16:8081", "127.77.0.17:8081", "127.77.0.18:8081", `"my-shop"`, "my_shop", "handfast proxy-config " + proxy.name + " --by " + by + " --config " + file} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%s %s: no %s in\n%s", proxy.name, by, want, &out)
				}
			}
			if strings.Contains(out.String(), "127.77.0.19") || strings.Contains(out.String(), "<no value>") {
				t.Errorf("%s %s:\n%s", proxy.name, by, &out)
			}
		}
	}
}

// TestProxyConfigRunning: the running one is asked, for as many of its slots as are wanted.
func TestProxyConfigRunning(t *testing.T) {
	t.Parallel()
	with := start(t, 2, options{flags: []string{"--name", "shop", "--listen", "0.0.0.0:0", "--slot-address", "127.77.1.0/24"}})
	without := start(t, 1, options{flags: []string{"--name", "stall"}})
	socket, path := onSocket(t, 1)
	for _, c := range []struct {
		admin, args string
		status      int
		want, not   string
	}{
		{socket.admin, "", exitFailure, "needs no more than server unix:" + path + "; in the upstream block", "upstream handfast"},
		{with.admin, "", exitOK, "shop_1", "shop_2"},
		{with.admin, "--workers 1", exitOK, "shop_0", "shop_1 {"},
		{with.admin, "--workers 3", exitUsage, "--workers 3: shop has 2 slots; first handfast scale 3", ""},
		{without.admin, "", exitFailure, "stall: its slots have no addresses of their own: run it with --slot-address", ""},
	} {
		var out fdtest.Log
		args := append([]string{"handfast", "proxy-config", "nginx", "--admin", c.admin}, strings.Fields(c.args)...)
		status := run(context.Background(), args, &out, &out)
		if status != c.status || !strings.Contains(out.String(), c.want) || c.not != "" && strings.Contains(out.String(), c.not) {
			t.Errorf("%s: status %d, want %d, with %q, without %q:\n%s", c.args, status, c.status, c.want, c.not, &out)
		}
	}
}

// TestProxyConfigMistakes: what makes no sense is said, with what to do.
func TestProxyConfigMistakes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "handfast.yaml")
	noError(t, os.WriteFile(file, []byte("workers: 3\n"), 0o644))
	for _, c := range []struct{ args, want string }{
		{"", "want nginx, haproxy, apache, caddy or traefik"},
		{"varnish", "want nginx, haproxy, apache, caddy or traefik"},
		{"nginx --slot-address 127.77.0.0/24 --by luck", `--by "luck": want address, cookie or header:NAME`},
		{"nginx --slot-address 127.77.0.0/24 --by header:", `--by "header:": want address, cookie or header:NAME`},
		{"nginx --slot-address 127.77.0.0/31 --workers 3", "--workers 2"},
		{"nginx --slot-address 127.77.0.0/24 --listen :0", "want the port on which slots are reached"},
		{"nginx --config " + file, "run it with --slot-address"},
		{"haproxy --slot-address 127.77.0.0/24 --listen unix:/run/app.sock?mode=0666", "needs no more than server handfast unix@/run/app.sock; for a proxy that chooses, its slots"},
		{"apache --slot-address 127.77.0.0/24 --listen unix:/run/app.sock", `needs no more than ProxyPass "/" "unix:/run/app.sock|http://app/"`},
		{"caddy --slot-address 127.77.0.0/24 --listen unix:/run/app.sock", "needs no more than reverse_proxy unix//run/app.sock"},
		{"traefik --slot-address 127.77.0.0/24 --listen unix:/run/app.sock", "to which this proxy cannot connect, and its slots"},
	} {
		var out fdtest.Log
		if status := run(t.Context(), append([]string{"handfast", "proxy-config"}, strings.Fields(c.args)...), &out, &out); status != exitUsage || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: status %d, want %q: %s", c.args, status, c.want, &out)
		}
	}
}
