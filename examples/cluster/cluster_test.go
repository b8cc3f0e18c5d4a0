// Package cluster_test runs several machines, each with a handfast of its own, behind HAProxy and behind a router: each
// machine is a network namespace.
package cluster_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const (
	people = 120 // clients, each with an address of its own
	slots  = 2   // of each machine
	// patience is what a client has for an answer, also while a machine is being given up.
	patience = 20 * time.Second
)

// cluster is the machines with a handfast on each, and their clients.
type cluster struct {
	*network
	programs [3]*trial.Process
	command  []string // of workers
	clients  []*http.Client
	at       []place // of each client, where it was last
}

// place is where a client was served.
type place struct{ machine, slot int }

func newCluster(t *testing.T) *cluster {
	c := &cluster{network: newNetwork(t, 3), at: make([]place, people)}
	for i := range people {
		c.clients = append(c.clients, c.client(i, patience))
	}
	return c
}

// run starts handfast on a machine.
func (c *cluster) run(machine int, flags ...string) {
	c.t.Helper()
	handfast := trial.Build(c.t, "github.com/handfast/handfast/cmd/handfast")
	if c.command == nil {
		c.command = []string{trial.Build(c.t, "github.com/handfast/handfast/examples/http")}
	}
	args := slices.Concat([]string{"run", "--log-json", "--name", c.name(machineName(machine)), "--workers", strconv.Itoa(slots), "--stop-timeout", "2s"}, flags, []string{"--"}, c.command)
	c.programs[machine] = c.start(machineName(machine), handfast, args...)
	c.programs[machine].AwaitReady(slots)
}

// ask has each client make a request on the connection that it has, or on a new one, and returns how many of the
// clients are somewhere else than they were.
func (c *cluster) ask(asking ...int) (moved []int) {
	c.t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, i := range asking {
		all.Go(func() {
			answer, err := trial.Get(c.clients[i], vip)
			if err != nil {
				c.t.Errorf("client %d of machine %d: %v", i, c.at[i].machine+1, err)
				return
			}
			is := place{c.machineOf(answer.PID), answer.Slot}
			mu.Lock()
			defer mu.Unlock()
			if is != c.at[i] {
				moved = append(moved, i)
			}
			c.at[i] = is
		})
	}
	all.Wait()
	return moved
}

// machineOf returns whose worker has a pid: its parent is that machine's handfast.
func (c *cluster) machineOf(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, after, found := strings.Cut(string(stat), ") "); found {
		parent, _ := strconv.Atoi(strings.Fields(after)[1])
		for i, p := range c.programs {
			if p != nil && p.Process.Pid == parent {
				return i
			}
		}
	}
	return -1
}

func everybody() (all []int) {
	for i := range people {
		all = append(all, i)
	}
	return all
}

// on returns the clients that a machine has, and those that it has not.
func (c *cluster) on(machine int) (its, others []int) {
	for i, at := range c.at {
		if at.machine == machine {
			its = append(its, i)
		} else {
			others = append(others, i)
		}
	}
	return its, others
}

// anew has clients connect again.
func (c *cluster) anew(who []int) {
	for _, i := range who {
		c.clients[i].CloseIdleConnections()
	}
}

// wantEven wants each slot of each machine to have its share: the hashes of machines and of slots have nothing to do with
// each other.
func (c *cluster) wantEven() {
	c.t.Helper()
	count := map[place]int{}
	for _, at := range c.at {
		count[at]++
	}
	c.t.Logf("clients by machine and slot: %v", count)
	for machine := range c.programs {
		for slot := range slots {
			// 20 are expected; less than 7 or more than 40 has a chance of some in ten thousand.
			if n := count[place{machine, slot}]; n < 7 || n > 40 {
				c.t.Errorf("machine %d, slot %d: %d clients of %d", machine+1, slot, n, people)
			}
		}
	}
}

// keep: clients come, and come again to where they were.
func (c *cluster) keep() {
	c.t.Helper()
	c.ask(everybody()...)
	c.wantEven()
	c.anew(everybody())
	if moved := c.ask(everybody()...); len(moved) > 0 {
		c.t.Errorf("%d clients that connected again are elsewhere, want none", len(moved))
	}
}

// drain: while a machine ends its handfast, after which out is told, its clients are served, there and then elsewhere. The
// other machines' clients stay.
func (c *cluster) drain(machine int, out func()) {
	c.t.Helper()
	its, others := c.on(machine)
	out()
	p := c.programs[machine]
	p.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	rounds := 0
	trial.Eventually(c.t, "it has ended", func() bool {
		rounds++
		if moved := c.ask(others...); len(moved) > 0 {
			c.t.Fatalf("%d clients of other machines moved while one was drained", len(moved))
		}
		c.ask(its...)
		select {
		case err := <-ended:
			if err != nil {
				c.t.Errorf("machine %d's handfast: %v", machine+1, err)
			}
			return true
		default:
			return c.t.Failed()
		}
	})
	if moved := c.ask(its...); c.t.Failed() || len(moved) > 0 {
		c.t.Fatalf("%d clients of the machine that was drained moved again", len(moved))
	}
	c.t.Logf("drained a machine with %d clients, of %d; %d rounds of requests meanwhile", len(its), people, rounds)
}

// lose: the clients of a machine that is gone are served elsewhere as soon as that is known. The other machines' clients
// stay, also when they connect again.
func (c *cluster) lose(machine int, known func()) {
	c.t.Helper()
	its, others := c.on(machine)
	start := time.Now()
	// As when its power fails: nobody says goodbye.
	c.in("router", "ip link set "+machineName(machine)+" down")
	syscall.Kill(-c.programs[machine].Process.Pid, syscall.SIGKILL)
	known()
	c.anew(its)
	if moved := c.ask(its...); len(moved) != len(its) {
		c.t.Errorf("of %d clients of the machine that was lost %d are elsewhere", len(its), len(moved))
	}
	c.t.Logf("lost a machine with %d clients; all are served elsewhere after %v", len(its), time.Since(start).Round(time.Millisecond))
	if moved := c.ask(others...); len(moved) > 0 {
		c.t.Errorf("%d clients of other machines moved when one was lost", len(moved))
	}
	c.anew(others)
	if moved := c.ask(others...); len(moved) > 0 {
		c.t.Errorf("%d clients of other machines connected again and are elsewhere when one was lost", len(moved))
	}
}

// TestHAProxy: HAProxy finds the machine and says by PROXY protocol who the client is.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	haproxy := trial.HAProxy.Need(t)
	c := newCluster(t)
	run := func(machine int) {
		c.run(machine, append(flagsOf(machine), "--proxy-protocol", "--stop-delay", "4s")...)
	}
	for machine := range c.programs {
		run(machine)
	}
	c.in("router", "ip address add "+vip+"/32 dev lo")
	c.start("router", haproxy, "-f", "haproxy.cfg")
	c.awaitOpen()
	c.keep()
	before := slices.Clone(c.at)
	const drained, lost = 1, 2
	its, _ := c.on(drained)
	byHealthCheck := func() {}
	c.drain(drained, byHealthCheck)
	run(drained)
	trial.Eventually(t, "the machine's clients are back", func() bool {
		c.anew(its)
		c.ask(its...)
		return slices.Equal(c.at, before)
	})
	c.lose(lost, byHealthCheck)
}

// flagsOf returns those of a machine behind HAProxy.
func flagsOf(machine int) []string {
	at := machineAddress(machine)
	return []string{"--listen", at + ":8080", "--trusted-proxies", gateway, "--admin", at + ":9180"}
}

// TestSocketIO: sessions stay with machine and worker, and what one worker tells reaches all of all machines, by the Redis
// adapter; also while the workers of all machines are replaced.
func TestSocketIO(t *testing.T) {
	sessions := os.Getenv("HANDFAST_TEST_CLIENTS")
	if sessions == "" {
		t.Skip("in make slices, and with more clients in make soak")
	}
	haproxy, redis := trial.HAProxy.Need(t), trial.Need(t, "redis-server", "redis-server")
	t.Chdir("../socketio")
	node, dir := trial.Install(t, "app.js", "server.js", "clients.js")
	t.Chdir("../cluster")
	t.Setenv("PORT", "8080")
	t.Setenv("REDIS_URL", "redis://"+gateway+":6379")
	c := newCluster(t)
	p := c.start("router", redis, "--bind", gateway, "--protected-mode", "no", "--save", "", "--dir", t.TempDir())
	p.Await("Redis", 1, func(line string) bool { return strings.Contains(line, "Ready to accept connections") })
	args := []string{filepath.Join(dir, "clients.js"), "http://" + vip, "--clients", sessions, "--workers", strconv.Itoa(slots * len(c.programs)), "--steady"}
	for machine := range c.programs {
		c.command = []string{node, filepath.Join(dir, "server.js")}
		c.run(machine, append(flagsOf(machine), "--behind-proxy", "--session", "engine.io")...)
		args = append(args, "--reload", strconv.Itoa(c.programs[machine].Process.Pid))
	}
	c.in("router", "ip address add "+vip+"/32 dev lo")
	c.start("router", haproxy, "-f", "haproxy-http.cfg")
	visitors := c.start("router", node, args...)
	visitors.Finish()
	if n := visitors.Count(func(line string) bool { t.Log(line); return line == "all is well" }); n != 1 {
		t.Error("the clients do not say that all is well")
	}
	for _, p := range c.programs {
		p.Stop()
	}
}

// TestDirectReturn: a router finds the machine by the addresses of packets; answers go past it, and no proxy is in the path.
func TestDirectReturn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	hop := func(machine int) string { return fmt.Sprint(11 + machine) }
	group := func(machines ...int) string {
		var hops []string
		for _, machine := range machines {
			hops = append(hops, hop(machine))
		}
		return "ip nexthop replace id 1 group " + strings.Join(hops, "/") + " type resilient buckets 256"
	}
	run := func(machine int) {
		c.run(machine, "--listen", vip+":80", "--admin", machineAddress(machine)+":9180", "--stop-delay", "4s")
	}
	for machine := range c.programs {
		c.in(machineName(machine), "ip address add "+vip+"/32 dev lo")
		c.in("router", "ip nexthop add id "+hop(machine)+" via "+machineAddress(machine)+" dev machines")
		run(machine)
	}
	c.in("router", group(0, 1, 2), "ip route add "+vip+"/32 nhid 1")
	c.awaitOpen()
	c.keep()
	const drained, lost = 1, 2
	c.drain(drained, func() { c.in("router", group(0, 2)) })
	c.lose(lost, func() { c.in("router", group(0)) })
}

// awaitOpen waits until somebody is served.
func (c *cluster) awaitOpen() {
	c.t.Helper()
	trial.Eventually(c.t, "the service is open", func() bool {
		_, err := trial.Get(c.client(people, time.Second), vip)
		return err == nil
	})
}
