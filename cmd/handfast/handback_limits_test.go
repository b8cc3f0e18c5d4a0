package main

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// proxiedIn is a client that a proxy speaks for and that belongs to a slot of n.
func proxiedIn(slot, n int) netip.Addr {
	for i := 0; ; i++ {
		if slotOf(proxied(i), n) == slot {
			return proxied(i)
		}
	}
}

// TestHandBackLimit: a connection that is handed back counts for the worker that gets it, as any, and no longer for the one that
// had it. Where the limit is reached the request is refused, once, and the connection ends.
func TestHandBackLimit(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--behind-proxy", "--max-connections-per-slot", "2"}})
	first, second := proxiedIn(0, 2), proxiedIn(1, 2)
	full := b.occupy(sourceIn(1, 2, 0), 2)
	p := b.openPool(proxyAt)
	if a := p.asks(pooledRequest(first, "")); a.slot != 0 {
		t.Errorf("%+v, want slot 0", a)
	}
	if _, err := io.WriteString(p, pooledRequest(second, "")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(p.lines, nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !resp.Close || resp.Header.Get("Retry-After") == "" {
		t.Fatalf("answer %+v, %v", resp, err)
	}
	io.Copy(io.Discard, resp.Body)
	if rest, err := io.ReadAll(p.lines); len(rest) > 0 || err != nil {
		t.Errorf("behind the refusal: %q, %v", rest, err)
	}
	b.occupy(sourceIn(0, 2, 0), 2) // slot 0 has room for both
	full[0].CloseNow()
	b.awaitStatus("room in slot 1", func(s *master.Status) bool { w := s.Slots[1].Worker; return w != nil && known(w.Open) == "1" })
	p = b.openPool(proxyAt)
	for range 3 {
		if a := p.asks(pooledRequest(second, "")); a.slot != 1 {
			t.Errorf("%+v, want slot 1", a)
		}
	}
	if s := b.status(); s.Totals.Refused != 1 || *s.Totals.HandedBack != 1 {
		t.Errorf("%d refused, %d handed back", s.Totals.Refused, *s.Totals.HandedBack)
	}
}

// TestHandBackWhenDown: a connection whose next request belongs to a slot without a worker goes to the next slot, which may be
// the one that has handed it back, and to its own when that has a worker again.
func TestHandBackWhenDown(t *testing.T) {
	t.Parallel()
	const slots = 2
	broken := t.TempDir() + "/broken"
	b := start(t, slots, options{worker: []string{"broken", broken}, flags: []string{
		"--behind-proxy", "--when-down", "next", "--retry-delay", "10ms", "--max-retries", "2", "--backoff-min", "1h", "--backoff-max", "1h",
	}})
	os.WriteFile(broken, nil, 0o600)
	unix.Kill(b.worker(1), unix.SIGKILL)
	b.await("workers keep dying young, next start is delayed")
	conn, err := b.dial(proxyAt)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := &pool{conn, b, bufio.NewReader(conn)}
	ask := func(slots ...int) {
		t.Helper()
		for i, want := range slots {
			if a := p.asks(pooledRequest(proxiedIn(i%2, 2), "")); a.slot != want {
				t.Errorf("request %d: %+v, want slot %d", i, a, want)
			}
		}
	}
	ask(0, 0, 0, 0, 0, 0)
	os.Remove(broken)
	b.tell("reload")
	ask(0, 1, 0, 1, 0, 1)
	if s := b.status(); s.Totals.Refused != 0 || *s.Totals.HandedBack < 5 {
		t.Errorf("%d refused, %d handed back", s.Totals.Refused, *s.Totals.HandedBack)
	}
}
