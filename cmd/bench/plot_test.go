package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

// The plot shows figures that are there, that are zero, and that are missing.
func TestPlot(t *testing.T) {
	rows := []string{"handfast", "b & c", "none"}
	found := results{
		"handfast": {{rate: 100, failures: 0}, {rate: 300, failures: 0}, {rate: 200, failures: 0}},
		"b & c":    {{rate: 50, failures: 0}},
	}
	svg := plot("A <title>", rows, []string{rate, failures}, found.cell)
	for decoder := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
	}
	text := string(svg)
	for want, n := range map[string]int{
		"A &lt;title&gt;": 2, ">handfast<": 1, ">b &amp; c<": 1, ">none<": 1,
		">conn/s<": 1, ">failed<": 1, "more is better": 1, "less is better": 1,
		">200<": 1, ">50.0<": 1, ">0<": 2, ">–<": 2,
		"<rect": 6, "<path": 1, `fill="` + colourOurs: 2,
		"%!": 0, "NaN": 0, "Inf": 0,
	} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%d times %q, want %d", got, want, n)
		}
	}
	// 313 is the width of a panel, of which the number beside the longest bar takes 56.
	for _, want := range []string{
		`<path d="M315.7 55.0v6m0-3H487.0m0-3v6"`, // from 100 to 300
		`<rect x="230.0" y="51.0" width="171.3"`,  // 200
		`<rect x="230.0" y="75.0" width="42.8"`,   // 50
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if again := plot("A <title>", rows, []string{rate, failures}, found.cell); !bytes.Equal(svg, again) {
		t.Error("another plot of the same figures")
	}
}

func TestTimeLeft(t *testing.T) {
	for _, test := range []struct {
		p    progress
		want string
	}{
		{progress{of: 10}, "0s"},
		{progress{of: 10, done: 2, took: 2}, "40s"},
		{progress{of: 10, done: 6, took: 2}, "20s"}, // four were skipped
	} {
		if got := test.p.left(1e10).String(); got != test.want {
			t.Errorf("%+v: %s left, want %s", test.p, got, test.want)
		}
	}
}

// The cases of the sweeps say what they are and change the settings accordingly.
func TestCases(t *testing.T) {
	for _, c := range busyWorkerCases(1, 64) {
		set := settings{workers: 2, concurrency: 32}
		c.apply(&set)
		if want := map[string]settings{"1 worker": {workers: 1, concurrency: 16}, "64 workers": {workers: 64, concurrency: 1024}}[c.label]; set.workers != want.workers || set.concurrency != want.concurrency {
			t.Errorf("%s: %d workers, %d connections", c.label, set.workers, set.concurrency)
		}
	}
	for _, c := range clientCases(10, 100_000) {
		set := settings{clients: 1000, duration: 2e9}
		c.apply(&set)
		if want := map[string]settings{"10 clients": {clients: 10, duration: 2e9}, "100,000 clients": {clients: 100_000, duration: 1e10}}[c.label]; set.clients != want.clients || set.duration != want.duration {
			t.Errorf("%s: %d clients, %v", c.label, set.clients, set.duration)
		}
	}
	if got := thousands(1_002_003); got != "1,002,003" {
		t.Error(got)
	}
}
