package master

import (
	"strings"
	"testing"

	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// TestLimitsNeedMailboxes: a library's user is told at once what no worker of theirs could do.
func TestLimitsNeedMailboxes(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"link native":                func(c *Config) { c.Link, c.MaxConnections = LinkNode, 5 },
		"at most -1 connections":     func(c *Config) { c.MaxConnections = -1 },
		"a timeout is negative":      func(c *Config) { c.Supervisor.Watchdog = -1 },
		"5 connections of a worker:": func(c *Config) { c.MaxConnections, c.Groups = 5, []*reuseport.Group{group(t)} },
	} {
		cfg := Config{Balancer: balancer.DefaultConfig(), Supervisor: supervisor.DefaultConfig()}
		cfg.Supervisor.Command, cfg.Supervisor.Workers = []string{"true"}, 1
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
