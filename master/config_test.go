package master

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// Which kinds of links go with which route. What does not is said at once.
func TestKindsAndRoutes(t *testing.T) {
	const (
		listeners  = "take listeners: Groups are required"
		connection = "take connections: Listeners are required"
		silent     = "do not say where they listen: Groups or Listeners are required"
	)
	for kind, want := range map[LinkKind][3]string{ // listeners, groups, follow
		LinkNative:     {"", "", silent},
		LinkNode:       {"", "", silent},
		LinkActivation: {listeners, "", silent},
		LinkAny:        {listeners, "", ""},
		LinkInject:     {"", connection, silent},
	} {
		for i, set := range []func(*Config){
			func(c *Config) { c.Listeners = make([]net.Listener, 1) },
			func(c *Config) { c.Groups = make([]*reuseport.Group, 1) },
			func(c *Config) { c.Follow = true },
		} {
			cfg, _, _ := newConfig(t)
			cfg.Link = kind
			set(&cfg)
			if got := fmt.Sprint(cfg.check()); want[i] == "" && got != "<nil>" || !strings.Contains(got, want[i]) || !strings.Contains(got, kind.String()) && got != "<nil>" {
				t.Errorf("%v, %d: %s, want %q", kind, i, got, want[i])
			}
		}
	}
}

// TestNewCloses: New closes all that it refuses.
func TestNewCloses(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, change := range map[string]func(*Config){
		"not both":       func(c *Config) { c.Groups = append(c.Groups, group(t)) },
		"other route":    func(c *Config) { c.resume = &saved{KernelRoute: new(kernelroute.Saved)} },
		"retry":          func(c *Config) { c.Balancer.RetryDelay = -1 },
		"ready timeout":  func(c *Config) { c.Supervisor.ReadyTimeout = 0 },
		"take listeners": func(c *Config) { c.Link = LinkAny },
		"open files is":  func(c *Config) { c.Supervisor.Workers = 1 << 24 },
		"that cannot be": func(c *Config) {
			c.Listeners[0].Close()
			c.Listeners, c.Groups, c.resume = nil, append(c.Groups, group(t)), &saved{KernelRoute: new(kernelroute.Saved)}
		},
		"no command to run": func(c *Config) { c.Supervisor.Command, c.Logger = nil, nil },
	} {
		cfg, _, _ := newConfig(t)
		cfg.Listeners, cfg.retired = []net.Listener{listen(t)}, []net.Listener{listen(t)}
		change(&cfg)
		if m, err := New(cfg); err == nil || m != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// The limit of open files bounds workers, and what each costs is counted.
func TestBound(t *testing.T) {
	cfg, _, _ := newConfig(t)
	cfg.Supervisor.Workers = 3
	plain := cfg.Files()
	cfg.Supervisor.NewOutput = func(supervisor.Seat) (supervisor.Output, error) { return nil, nil }
	withOutput := cfg.Files()
	cfg.Groups = make([]*reuseport.Group, 2)
	withGroups := cfg.Files()
	if withOutput-plain != 2*3*filesPerOutput || withGroups-withOutput != 2+2*3*2 {
		t.Errorf("%d files, %d with output, %d with two groups", plain, withOutput, withGroups)
	}
	cfg.Groups, cfg.Follow = nil, true
	if got := cfg.Files(); got != withGroups { // one for each family, as a rule
		t.Errorf("%d files where workers decide, %d with two groups", got, withGroups)
	}
	cfg.bound()
	if most := cfg.Supervisor.MaxWorkers; most < 1 || most > reuseport.MaxSlots || most > cfg.Supervisor.MaxProcesses/2 {
		t.Errorf("at most %d workers, %d processes", most, cfg.Supervisor.MaxProcesses)
	}
	if all := cfg.Supervisor.MaxProcesses * cfg.filesPerWorker(); all > fdlimit.Limit() {
		t.Errorf("all processes need %d files of %d", all, fdlimit.Limit())
	}
	cfg.Follow = false
	cfg.bound()
	if most := cfg.Supervisor.MaxWorkers; most > hash.MaxSlots {
		t.Errorf("at most %d workers", most)
	}
}

// Workers are told how clients are recognised, and where handfast listens if it is known.
func TestEnviron(t *testing.T) {
	clients := balancer.DefaultConfig().Clients
	clients.Hash.IPv4Prefix, clients.Hash.IPv6Prefix = 24, 56
	env := environ(&clients, addresses("192.0.2.1:80", "192.0.2.2:80"))
	for _, want := range []string{"HANDFAST_ADDRESS=192.0.2.1:80", "HANDFAST_IPV4_PREFIX=24", "HANDFAST_IPV6_PREFIX=56"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %v", want, env)
		}
	}
	if n := len(environ(&clients, nil)); n != len(env)-1 {
		t.Errorf("%d variables without an address, %d with one", n, len(env))
	}
}
