package main

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/hash"
)

// values reads flags and checks their ranges. The first error stays.
type values struct {
	*cli.Context
	err error
}

func (v *values) fail(format string, args ...any) {
	if v.err == nil {
		v.err = usagef(format, args...)
	}
}

// number returns an integer between low and high.
func (v *values) number(name string, low, high int) int {
	n := v.Int(name)
	if n < low || n > high {
		v.fail("--%s %d: want %d to %d", name, n, low, high)
	}
	return n
}

// duration returns a time of at least low.
func (v *values) duration(name string, low time.Duration) time.Duration {
	d := v.Duration(name)
	if d < low {
		v.fail("--%s %v: want at least %v", name, d, low)
	}
	return d
}

// choice returns the index of a flag's value among the words allowed.
func (v *values) choice(name string, words ...string) int {
	i := slices.Index(words, v.String(name))
	if i < 0 {
		v.fail("--%s %q: want %s", name, v.String(name), strings.Join(words, " or "))
	}
	return i
}

func (v *values) workers() int { return v.number("workers", 1, hash.MaxSlots) }

func (v *values) hashing() hash.Config {
	seed := v.Uint64("hash-seed")
	if seed > math.MaxUint32 {
		v.fail("--hash-seed %d: want 0 to %d", seed, uint32(math.MaxUint32))
	}
	return hash.Config{
		Seed:       uint32(seed),
		IPv4Prefix: v.number("ipv4-prefix", 0, 32),
		IPv6Prefix: v.number("ipv6-prefix", 0, 128),
	}
}
