package supervisor

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string // in the error; empty: none
	}{
		"default":           {func(c *Config) {}, ""},
		"no patience":       {func(c *Config) { c.DrainTimeout, c.StopTimeout, c.KillTimeout, c.MinUptime = 0, 0, 0, 0 }, ""},
		"no command":        {func(c *Config) { c.Command = nil }, "no command"},
		"empty command":     {func(c *Config) { c.Command = []string{""} }, "no command"},
		"no workers":        {func(c *Config) { c.Workers = 0 }, "0 workers, want at least 1"},
		"too many workers":  {func(c *Config) { c.Workers, c.MaxWorkers = 3, 2 }, "3 workers, want at most 2"},
		"negative maximum":  {func(c *Config) { c.MaxWorkers = -1 }, "at most -1 workers"},
		"no link":           {func(c *Config) { c.NewLink = nil }, "NewLink and Slots are required"},
		"no slots":          {func(c *Config) { c.Slots = nil }, "NewLink and Slots are required"},
		"no ready timeout":  {func(c *Config) { c.ReadyTimeout = 0 }, "ready timeout 0s"},
		"negative timeout":  {func(c *Config) { c.KillTimeout = -1 }, "timeout is negative"},
		"no backoff":        {func(c *Config) { c.BackoffMin = 0 }, "backoff from 0s to 10s"},
		"shrinking backoff": {func(c *Config) { c.BackoffMin = time.Minute }, "backoff from 1m0s to 10s"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Command, cfg.Workers = []string{"server"}, 1
			cfg.NewLink, cfg.Slots = func(Seat) (Link, error) { return nil, nil }, &world{}
			tt.change(&cfg)
			_, err := New(cfg)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	c := Config{BackoffMin: 10 * time.Second, BackoffMax: 300 * time.Hour}
	for failures, want := range map[int]time.Duration{
		0:           0,
		1:           10 * time.Second,
		2:           20 * time.Second,
		17:          10 * time.Second << 16,
		18:          c.BackoffMax,
		31:          c.BackoffMax, // 10 s << 30 does not fit in a Duration
		math.MaxInt: c.BackoffMax,
	} {
		if got := c.backoff(failures); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
}
