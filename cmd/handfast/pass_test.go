package main

import (
	"io"
	"testing"

	"github.com/handfast/handfast/master"
)

// TestPass: on a connection of a pool workers pass the requests of each other to each other, without the master; and what one has not
// received when it is killed its successor answers.
func TestPass(t *testing.T) {
	t.Parallel()
	b := start(t, 2, options{flags: []string{"--behind-proxy"}})
	p := b.openPool(proxyAt)
	asks := func() {
		t.Helper()
		for slot := range 2 {
			if a := p.asks(pooledRequest(proxiedIn(slot, 2), "")); a.slot != slot {
				t.Errorf("%+v, want slot %d", a, slot)
			}
		}
	}
	const rounds = 20
	for range rounds {
		asks()
	}
	// A worker that has read the first byte of the next request already lets its connection go for good.
	if !eventually(func() bool { return b.passed() >= rounds }) {
		t.Errorf("%d connections were passed", b.passed())
	}

	p.asks(pooledRequest(proxiedIn(0, 2), ""))
	back := *b.status().Totals.HandedBack
	dead := b.worker(1)
	freeze(t, dead)
	if _, err := io.WriteString(p, pooledRequest(proxiedIn(1, 2), "")); err != nil {
		t.Fatal(err)
	}
	b.awaitStatus("that it is passed", func(s *master.Status) bool { w := s.Slots[0].Worker; return w != nil && known(w.Open) == "0" })
	kill(t, dead)
	if a := p.answered(); a.slot != 1 || a.pid == dead {
		t.Errorf("%+v, want another worker of slot 1", a)
	}
	if n := *b.status().Totals.HandedBack - back; n != 1 {
		t.Errorf("%d connections came to the master", n)
	}
	asks()
}

// TestPassNot: where the master has to know of each connection that a worker gets, workers pass none to each other.
func TestPassNot(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"limit":    {"--max-connections-per-slot", "10"},
		"affinity": {"--drain-affinity", "1m"},
		"least":    {"--session", "cookie:sid", "--new-sessions", "least"},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, 2, options{flags: append(flags, "--behind-proxy")})
			if w := b.status().Slots[0].Worker; w.Passed != nil || *w.HandsBack == false {
				t.Errorf("%+v", w)
			}
		})
	}
}
