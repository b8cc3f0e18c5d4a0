package main

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestCommandLine: flags come first, wherever they are typed, and what belongs to COMMAND stays as it is.
// Row C9.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		typed, ordered, flags string
		pending               string
	}{
		{"slot 10.0.0.1 --workers 3", "--workers 3 -- 10.0.0.1", "workers", ""},
		{"slot 10.0.0.1 -n 3", "-n 3 -- 10.0.0.1", "workers", ""},
		{"slot --workers=3 10.0.0.1", "--workers=3 -- 10.0.0.1", "workers", ""},
		{"slot -- --workers", "-- --workers", "", ""},
		{"slot -", "-- -", "", ""},
		{"drain 1 --name a", "--name a -- 1", "name", ""},
		{"drain --name", "--name", "name", "--name"},
		{"status --json --name=a", "--json --name=a", "json name", ""},
		{"run --workers 3 server --workers 4 -x", "--workers 3 -- server --workers 4 -x", "workers", ""},
		{"run --behind-proxy server -x", "--behind-proxy -- server -x", "behind-proxy", ""},
		{"run -l :80 -- server -- -x", "-l :80 -- server -- -x", "listen", ""},
		{"run --no-such-flag server", "--no-such-flag -- server", "", ""},
		{"check server -x", "-- server -x", "", ""},
		{"check -n 2 server -n 3", "-n 2 -- server -n 3", "workers", ""},
		{"check --config", "--config", "config", "--config"},
		{"run", "", "", ""},
	} {
		words := strings.Fields(c.typed)
		command := newApp(io.Discard, io.Discard).Command(words[0])
		l := readCommandLine(command, words[1:])
		flags := strings.Join(slices.Sorted(maps.Keys(l.typed(command))), " ")
		if ordered := strings.Join(l.ordered(), " "); ordered != c.ordered || flags != c.flags || l.pending != c.pending {
			t.Errorf("%s: %q, flags %q, pending %q", c.typed, ordered, flags, l.pending)
		}
		if again := readCommandLine(command, l.ordered()); !slices.Equal(again.ordered(), l.ordered()) {
			t.Errorf("%s: ordered twice %q", c.typed, again.ordered())
		}
	}
}
