package logging

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestLimit: each message a few times, and then once a second, with how many were left out. Row B4.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		root := Limit(hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Debug, JSONFormat: true}), Few)
		count := func(text string) (n int) {
			defer out.Reset()
			return strings.Count(out.String(), text)
		}
		for range 1000 {
			root.Named("node").With("k", "v").Warn("again", "slot", 1)
		}
		if n := count("again"); n != Few.Burst {
			t.Errorf("%d lines at once, want %d", n, Few.Burst)
		}
		root.Info("another")
		root.Log(hclog.Error, "a third")
		if n := count("another"); n != 1 {
			t.Errorf("another message: %d lines", n)
		}
		time.Sleep(2500 * time.Millisecond)
		for range 10 {
			root.Error("again")
		}
		if text := out.String(); !strings.Contains(text, `"left_out":995`) || count("again") != 2 {
			t.Errorf("later: %s", text)
		}
		time.Sleep(500 * time.Millisecond)
		root.Error("again")
		if text := out.String(); !strings.Contains(text, `"left_out":8`) {
			t.Errorf("the third second has begun: %s", text)
		}
		out.Reset()
		time.Sleep(time.Hour)
		for range 100 {
			root.Error("again")
			root.Debug("asked for")
		}
		if n := strings.Count(out.String(), "again"); n != Few.Burst {
			t.Errorf("an hour later %d lines", n)
		}
		if n := count("asked for"); n != 100 {
			t.Errorf("%d of 100 debug lines", n)
		}
		root.Trace("not asked for")
		if out.Len() > 0 {
			t.Error(out.String())
		}
	})
}

// TestLimitBySlot: 128 workers that are ready at once are no flood.
func TestLimitBySlot(t *testing.T) {
	var out bytes.Buffer
	log := Limit(hclog.New(&hclog.LoggerOptions{Output: &out}), Rate{Burst: 2, Every: time.Hour, By: "slot"})
	for range 3 {
		for slot := range 128 {
			log.Info("worker ready", "pid", 1, "slot", slot)
		}
	}
	if n := strings.Count(out.String(), "worker ready"); n != 2*128 {
		t.Errorf("%d lines, want 256", n)
	}
}
