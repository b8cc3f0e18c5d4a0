package main

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/handfast/handfast/master/probe"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// minWatchdog leaves a worker that is well, on a machine that is busy, the time to answer.
	minWatchdog = 100 * time.Millisecond
	// minHealth is the shortest --health-interval.
	minHealth = 100 * time.Millisecond
	// minMaxAge is the lowest --max-age: less is no life.
	minMaxAge = time.Second
	// minMaxMemory is the lowest --max-memory: no program has less.
	minMaxMemory = 1 << 20
)

// watchdog reads how workers are watched.
func (v *values) watchdog(s *supervisor.Config) {
	s.Watchdog = v.duration("watchdog", 0)
	if s.Watchdog > 0 && s.Watchdog < minWatchdog {
		v.fail("--watchdog %v: want 0 for none, or at least %v", s.Watchdog, minWatchdog)
	}
	s.ReplaceHung = v.choice("when-hung", "report", "replace") == 1
	if s.ReplaceHung && s.Watchdog == 0 {
		v.fail("--when-hung replace: needs --watchdog, else nobody looks")
	}
	v.health(&s.Health)
}

// health reads how workers are asked whether they are healthy.
func (v *values) health(h *supervisor.Health) {
	h.Interval = v.duration("health-interval", minHealth)
	h.Timeout = v.duration("health-timeout", time.Millisecond)
	h.Failures = v.number("health-failures", 1, math.MaxInt32)
	h.Replace = v.choice("when-unhealthy", "report", "replace") == 1
	text := v.String("healthy-when")
	if text == "" {
		if h.Replace {
			v.fail("--when-unhealthy replace: needs --healthy-when, else nobody asks")
		}
		return
	}
	p, err := probe.Parse(text)
	switch {
	case errors.Is(err, probe.ErrUnknown), err == nil && p.TCP+p.HTTP == "":
		v.fail("--healthy-when %q: want tcp:HOST:PORT or http://HOST:PORT/PATH", text)
	case err != nil:
		v.fail("--healthy-when %q: %w", text, err)
	case !strings.Contains(text, "{slot}") && v.Int("workers") > 1:
		v.fail("--healthy-when %s: want {slot} in it, at an address where this worker alone answers: another one may answer for it", text)
	}
	h.Check = func(ctx context.Context, seat supervisor.Seat) error { return p.Ask(ctx, seat.Slot, seat.Generation) }
}

// recycling reads when workers are replaced although they serve, and when no more are.
func (v *values) recycling(s *supervisor.Config) {
	if v.String("max-memory") != "" {
		s.MaxMemory = v.memory("max-memory", minMaxMemory)
	}
	if s.MaxAge = v.duration("max-age", 0); s.MaxAge > 0 && s.MaxAge < minMaxAge {
		v.fail("--max-age %v: want 0 for none, or at least %v", s.MaxAge, minMaxAge)
	}
	s.MaxRestarts = v.number("max-restarts", 0, math.MaxInt32)
}

// memory returns a size of memory in bytes, of at least low.
func (v *values) memory(name string, low int64) int64 {
	text := v.String(name)
	digits, shift := text, 0
	for suffix, bits := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if before, ok := strings.CutSuffix(text, suffix); ok {
			digits, shift = before, bits
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift || n<<shift < low {
		hint := ""
		if bare := strings.TrimRight(strings.ToLower(text), "ib"); bare != "" && strings.ContainsRune("kmg", rune(bare[len(bare)-1])) && isWhole(bare[:len(bare)-1]) {
			hint = bare[:len(bare)-1] + strings.ToUpper(bare[len(bare)-1:]) + "iB"
		}
		v.fail("--%s %q: want at least 1MiB, in bytes or as KiB, MiB or GiB, such as 512MiB%s", name, text, didYouMean(hint))
		return 0
	}
	return n << shift
}
