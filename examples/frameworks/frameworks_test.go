// Package frameworks_test runs servers of web frameworks under the real command. Those of Node, unmodified, are behind nginx, which
// pools its connections: handfast loads a module into the workers that hands them back between requests. Others have sessions
// (session_test.go).
package frameworks_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// clients of nginx at the same time, and the requests that they make at least before and after a reload.
const (
	clients  = 8
	requests = 200
)

func TestExpress(t *testing.T) { try(t, "express.js") }

func TestFastify(t *testing.T) { try(t, "fastify.js") }

// try: each request is answered in its own client's slot, and none fails, over connections that nginx lends to whoever comes, and
// through a reload.
func try(t *testing.T, server string) {
	trial.Nginx.Need(t)
	node, dir := trial.Install(t, "express.js", "fastify.js", "who.js")
	listen := trial.FreeAddress(t)
	_, port, _ := net.SplitHostPort(listen)
	t.Setenv("PORT", port)
	handfast, at := trial.BalanceAt(t, listen, []string{"--behind-proxy", "--stop-timeout", "2s"}, node, filepath.Join(dir, server))
	nginx, address := trial.Nginx.Start(t, "../proxies/nginx-pool.conf", at)
	l := &load{t: t, url: "http://" + address + "/"}
	l.make(atLeast())
	handfast.Process.Signal(syscall.SIGUSR2)
	done := func(line string) bool { return strings.Contains(line, `"reload finished"`) }
	l.makeUntil(atLeast(), func() bool { return handfast.Count(done) > 0 })
	handfast.Await("reload", 1, done)
	t.Logf("%d requests, %d of them in a wrong slot, %d failed", l.made.Load(), l.strayed.Load(), l.failed.Load())
	nginx.StopWith(trial.Nginx.Stop)
	handfast.Stop()
	handfast.Await("nobody refused", 1, func(line string) bool {
		return strings.Contains(line, `"stopped"`) && strings.Contains(line, `"refused":0`)
	})
}

// atLeast is how many requests are made, or what the environment says.
func atLeast() int {
	if n, err := strconv.Atoi(os.Getenv("HANDFAST_TEST_REQUESTS")); err == nil {
		return n / 2
	}
	return requests
}

// load are requests of many clients through nginx.
type load struct {
	t   *testing.T
	url string

	made, strayed, failed atomic.Int64
}

func (l *load) make(n int) { l.makeUntil(n, func() bool { return true }) }

// makeUntil makes n requests, and more until so.
func (l *load) makeUntil(n int, so func() bool) {
	var all sync.WaitGroup
	target := l.made.Load() + int64(n)
	for range clients {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
			defer client.CloseIdleConnections()
			for (l.made.Load() < target || !so()) && l.failed.Load() < 10 {
				l.one(client)
			}
		})
	}
	all.Wait()
}

// one makes a request for any of a thousand clients, some with a body.
func (l *load) one(client *http.Client) {
	addr := netip.AddrFrom4([4]byte{203, 0, byte(113 + rand.IntN(4)), byte(rand.IntN(250))})
	length := rand.IntN(4) * rand.IntN(30_000)
	method, body := http.MethodGet, io.Reader(nil)
	if length > 0 {
		method, body = http.MethodPost, strings.NewReader(strings.Repeat("x", length))
	}
	req, err := http.NewRequest(method, l.url, body)
	if err != nil {
		l.t.Error(err)
		return
	}
	req.Header.Set("X-Forwarded-For", addr.String())
	req.Header.Set("Content-Type", "application/x-anything")
	l.made.Add(1)
	resp, err := client.Do(req)
	var text []byte
	if err == nil {
		text, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	var slot, pid, got int
	if _, scanned := fmt.Sscanf(string(text), "slot=%d pid=%d length=%d", &slot, &pid, &got); err != nil || scanned != nil || got != length {
		l.failed.Add(1)
		l.t.Errorf("client %v, %d bytes: %q, %v", addr, length, text, err)
	} else if want := hash.DefaultConfig().Key(addr).Slot(trial.Workers); slot != want {
		if l.strayed.Add(1) < 10 {
			l.t.Errorf("client %v: slot %d, want %d", addr, slot, want)
		}
	}
}
