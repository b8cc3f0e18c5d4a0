package master

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/fdlimit"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// filesPerOutput is how many it holds for what a worker prints, if it reads that.
	filesPerOutput = 2

	// filesPerProcess is how many descriptors the master holds for each worker
	// process, also one that drains: both ends of its mailbox, the inbox of ours, and its pidfd.
	filesPerProcess = 4

	// filesPerPassage is how many it holds besides for what other workers pass to one.
	filesPerPassage = 2

	// baseFiles is what it holds besides: standard streams, poller, listeners, and eBPF programs with their maps.
	baseFiles = 28
)

// supervisorRate leaves room for all that operators do with a slot, and bounds what its workers cause.
var supervisorRate = logging.Rate{Burst: 100, Every: 200 * time.Millisecond, By: "slot"}

// Config is what a Master needs. Supervisor's NewLink and Slots, and the loggers of
// both parts, are the Master's to set.
//
// With Groups in place of Listeners the kernel gives clients to slots (package reuseport); it
// knows nothing but their addresses.
type Config struct {
	Listeners []net.Listener     // of which the Master takes ownership, also on error
	Groups    []*reuseport.Group // likewise

	// Programs are for the Groups of another program (Adopt), and for groups that are opened later: those that are given one count what comes
	// to each slot. The Master takes ownership, also on error. nil: there are none.
	Programs *reuseport.Programs

	// Follow has the master listen where workers of LinkAny do, and the kernel route: there may be no
	// Groups yet.
	Follow bool

	Balancer   balancer.Config
	Supervisor supervisor.Config
	Link       LinkKind          // how workers get their connections
	ReadyWhen  nodeipc.ReadyWhen // when a Node worker is ready

	// MaxConnections is how many connections a worker may have open before further ones are refused;
	// 0: any number. It needs Listeners, and workers of LinkNative that report their
	// connections; on others it has no effect, and that is logged.
	MaxConnections int

	// DrainSignal tells a worker of LinkActivation, LinkAny or LinkInject to finish, or launch.NoSignal: it
	// ends when its last connection has. 0: what is known of its program (programs.DrainSignal).
	DrainSignal syscall.Signal
	Dialect     nodeipc.Dialect // what Node workers wait for that do not listen
	// NoHandBack: workers keep the connections of proxies, whoever the client of the next request is. Node workers hand them
	// back only by NodeModule.
	NoHandBack bool
	NodeModule *nodeipc.Module
	// SessionIdle is for how long, since a request last named it, a worker that was replaced goes on taking requests that do, if sessions
	// name workers (Balancer.Clients.Rules.Sessions); DrainTimeout bounds that. 0: it drains at once.
	SessionIdle time.Duration
	// StopDelay is for how long connections are still accepted after Stop, so that load balancers notice it before (/readyz). 0: not at all.
	StopDelay time.Duration
	// DrainAffinity is within how long clients that were served lately go back to their worker although it was replaced, as
	// long as it lingers, each by what it is recognised by. It needs Listeners. 0: they go to their slot at once.
	DrainAffinity time.Duration
	// HearNotices has workers say by man 3 sd_notify how they are: each has a NOTIFY_SOCKET of its own.
	HearNotices bool
	Name        string // for people, in Status
	Version     string // likewise
	// Logger must not wait for its reader: package logging has what does not (Queue). nil: none.
	Logger hclog.Logger

	// AccessLog has a line at level Info for each connection that the master has accepted: who it is
	// from, what became of it, and how long it waited. It must not wait. nil: none.
	AccessLog hclog.Logger

	// OnEvent is told of what happens to workers, in order, if it is not nil. It may take its time: that holds up further events, and
	// nothing else.
	OnEvent func(supervisor.Event)

	resume  *saved                   // what the program before has left (Adopt); nil: nothing
	names   *savedNames              // likewise; nil: it had none
	counts  *kernelroute.SavedCounts // likewise
	retired []net.Listener           // of it, that are not wanted any more (Retire)
}

// kernelRoutes tells whether the kernel gives clients to slots.
func (c *Config) kernelRoutes() bool { return len(c.Groups) > 0 || c.Follow }

// groups is how many there may be, as a rule.
func (c *Config) groups() int {
	if c.Follow {
		return max(len(c.Groups), 2)
	}
	return len(c.Groups)
}

// namesWorkers tells whether workers have names, by which sessions come back to them, or clients.
func (c *Config) namesWorkers() bool {
	return (len(c.Balancer.Clients.Rules.Sessions) > 0 || c.DrainAffinity > 0) && !c.kernelRoutes()
}

// lingers is how long a worker that was replaced waits for what may come back to it.
func (c *Config) lingers() time.Duration {
	if len(c.Balancer.Clients.Rules.Sessions) == 0 {
		return c.DrainAffinity
	}
	return max(c.SessionIdle, c.DrainAffinity)
}

// Files is how many descriptors the master needs, without those of connections that are
// parked.
func (c *Config) Files() int {
	// A reload doubles the number of processes if the old ones take their time.
	return baseFiles + fdlimit.Reserve + c.groups() + 2*c.filesPerWorker()*c.Supervisor.Workers
}

// filesPerWorker is how many of them it needs for each worker process.
func (c *Config) filesPerWorker() int {
	n := filesPerProcess + c.groups()
	if c.Supervisor.NewOutput != nil {
		n += filesPerOutput
	}
	if c.HearNotices {
		n++
	}
	if c.passes() {
		n += filesPerPassage
	}
	return n
}

// check says what cannot be served as it is asked for.
func (c *Config) check() error {
	kind, kernel := c.Link.row(), c.kernelRoutes()
	switch need := c.Files(); {
	case fdlimit.Limit() < need:
		return fmt.Errorf("master: the limit of open files is %d, %d workers need %d; raise it with ulimit -n or LimitNOFILE=",
			fdlimit.Limit(), c.Supervisor.Workers, need)
	case kernel && len(c.Listeners) > 0:
		return errors.New("master: the kernel or the master gives clients to slots, not both: Listeners or Groups")
	case c.Follow && !kind.follows:
		return fmt.Errorf("master: workers of link %v do not say where they listen: Groups or Listeners are required", c.Link)
	case !kernel && !kind.connections:
		return fmt.Errorf("master: workers of link %v take listeners: Groups are required", c.Link)
	case kernel && !kind.listeners:
		return fmt.Errorf("master: workers of link %v take connections: Listeners are required", c.Link)
	case c.MaxConnections > 0 && !kind.reports:
		return fmt.Errorf("master: workers of link %v do not report their connections: MaxConnections needs link %s", c.Link, kindsThat(LinkKind.Reports))
	case c.SessionIdle < 0 || c.DrainAffinity < 0:
		return fmt.Errorf("master: SessionIdle %v, DrainAffinity %v: want 0 or more", c.SessionIdle, c.DrainAffinity)
	case c.MaxConnections < 0 || c.MaxConnections > 0 && kernel:
		return fmt.Errorf("master: at most %d connections of a worker: want 0 or more, and Listeners, since the master has to hand them off", c.MaxConnections)
	case c.resume != nil && kernel != (c.resume.KernelRoute != nil):
		return errors.New("master: the program before gave clients to slots by the other route")
	}
	return nil
}

// bound sets how many workers and processes there may be for want of descriptors, and of slots.
func (c *Config) bound() {
	c.Supervisor.MaxProcesses = (fdlimit.Limit() - baseFiles - fdlimit.Reserve) / c.filesPerWorker()
	c.Supervisor.MaxWorkers = min(hash.MaxSlots, c.Supervisor.MaxProcesses/2)
	if c.kernelRoutes() {
		c.Supervisor.MaxWorkers = min(c.maxSlots(), c.Supervisor.MaxWorkers)
	}
	if own := c.Balancer.Clients.Hash.Slots; own.IsValid() && own.Room() < c.Supervisor.MaxWorkers {
		c.Supervisor.MaxWorkers = own.Room()
		c.Supervisor.MaxWorkersWhy = fmt.Sprintf("so many addresses has --slot-address %v; for more slots give a larger network", own)
	}
}

// maxSlots is from how many slots the kernel can pick.
func (c *Config) maxSlots() int {
	most := c.Programs.MaxSlots()
	for i, g := range c.Groups {
		if i == 0 || g.MaxSlots() < most {
			most = g.MaxSlots()
		}
	}
	return most
}

// requests are what is asked of workers that can report.
func (c *Config) requests() mailbox.Requests {
	r := mailbox.Requests{MaxConnections: c.MaxConnections, Pings: c.Supervisor.Watchdog > 0}
	if _, byKey := c.Balancer.Strategy.(balancer.ByKey); byKey && !c.kernelRoutes() && !c.NoHandBack {
		r.Slots = &mailbox.Slots{Passes: c.passes()} // workers can place clients as we do
		r.Rules = strings.Join(placing(&c.Balancer.Clients), "\n")
	}
	return r
}

// passes tells whether workers pass connections to each other between two requests, of which the master need not know: it bounds no worker's
// connections, places no client by their number, and remembers no client's worker.
func (c *Config) passes() bool {
	rules := &c.Balancer.Clients.Rules
	return c.Link == LinkNative && rules.Looks() && !c.kernelRoutes() && !c.NoHandBack && c.MaxConnections == 0 && !rules.Anywhere && c.DrainAffinity == 0
}

// close closes what New was given.
func (c *Config) close() {
	for _, ln := range slices.Concat(c.Listeners, c.retired) {
		ln.Close()
	}
	for _, g := range c.Groups {
		g.Close()
	}
	c.Programs.Close()
}

// environ tells workers how we recognise clients, and where the first of our listeners is.
func environ(clients *clientip.Config, addresses []netip.AddrPort) []string {
	env := placing(clients)
	if len(addresses) > 0 {
		env = append(env, fdpass.EnvAddress+"="+addresses[0].String())
	}
	if own := clients.Hash.Slots; own.IsValid() {
		env = append(env, fdpass.EnvSlotAddress+"="+own.String())
	}
	return env
}

// draining tells workers how long they may drain, if their ends are spread.
func draining(s *supervisor.Config) []string {
	if s.DrainSpread <= 0 {
		return nil
	}
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	return []string{fdpass.EnvDrainTimeout + "=" + seconds(s.DrainTimeout), fdpass.EnvDrainSpread + "=" + seconds(s.DrainSpread)}
}

// placing tells workers how we recognise clients.
func placing(clients *clientip.Config) []string {
	return append(clients.Rules.Environ(),
		fdpass.EnvSeed+"="+strconv.FormatUint(uint64(clients.Hash.Seed), 10),
		fdpass.EnvIPv4Prefix+"="+strconv.Itoa(clients.Hash.IPv4Prefix),
		fdpass.EnvIPv6Prefix+"="+strconv.Itoa(clients.Hash.IPv6Prefix))
}
