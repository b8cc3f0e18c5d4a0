package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/metrics"
	"github.com/handfast/handfast/master/output"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
	"github.com/handfast/handfast/master/systemd"
)

// defaultListen is where to listen when nobody says.
const defaultListen = ":8080"

// runCommand is `handfast run`.
func runCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "start workers and hand connections to them",
		ArgsUsage: "-- COMMAND [ARG...]",
		Description: "Starts COMMAND once per slot. Signals: SIGUSR2 replaces all workers one by one,\n" +
			"SIGHUP the master's own program (see upgrade; where standard input is a terminal, which\n" +
			"closes then, it stops), SIGTTIN and SIGTTOU add and remove a slot, SIGUSR1 opens the access\n" +
			"log anew, SIGTERM and SIGINT finish what is open and stop, a second one, at least a second\n" +
			"later, stops at once, or ends --stop-delay.\n\n" +
			"Behind nginx, HAProxy or another HTTP proxy clients are told apart only with\n" +
			"--behind-proxy, behind a TCP proxy only with --proxy-protocol.\n\n" +
			"Exit status: 0 stopped as asked; 1 could not start, could not go on, or was\n" +
			"stopped by a second signal; 2 wrong flags; 3 workers kept dying young, with\n" +
			"--max-restarts. Without that workers that fail do not end it: they are started again,\n" +
			"and clients of their slots wait and then get 502.",
		Flags: runFlags(),
		Action: func(c *cli.Context) error {
			// The reader of our log may go away: that ends a Go program unless it is caught
			// (os/signal, SIGPIPE).
			signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
			log := logging.NewQueue(stderr)
			defer log.Close()
			a, err := readAll(c, log)
			if err != nil {
				return err
			}
			if len(a.config.Supervisor.Command) == 0 {
				return usagef("run: no COMMAND to run as a worker; write it behind --, or as command in the file of --config")
			}
			return serve(c.Context, a, log)
		},
	}
}

// asked is what command line, environment and configuration file ask for.
type asked struct {
	config master.Config // all but listeners and what the plan decides
	route  route
	link   link
	listen []string // addresses; none: what a service manager passes, or the default
	opens  opener
	idle   bool     // --session-idle is given
	access string   // file of the access log; empty: none
	follow []string // files that workers are restarted for, when they change
	output string   // one of outputWords
	json   bool     // logs are

	answers answering
	drop    bool // root, for the workers' user
	from    origins
}

// addresses are those to listen on, unless a service manager passes some.
func (a asked) addresses() []string {
	if len(a.listen) == 0 {
		return []string{defaultListen}
	}
	return a.listen
}

// intent is the part that the plan depends on.
func (a asked) intent() intent {
	c := &a.config
	return intent{
		route:          a.route,
		link:           a.link,
		listen:         a.listen,
		freebind:       a.opens.free,
		ebpf:           a.opens.ebpf,
		slotAddress:    c.Balancer.Clients.Hash.Slots,
		workers:        c.Supervisor.Workers,
		readyWhen:      c.ReadyWhen,
		header:         c.Balancer.Clients.Rules.Header != "",
		affinity:       c.DrainAffinity > 0,
		sessions:       len(c.Balancer.Clients.Rules.Sessions) > 0,
		sessionIdle:    a.idle,
		brought:        c.Balancer.Clients.Rules.LooksAtAll(),
		engineIO:       slices.Contains(c.Balancer.Clients.Rules.Sessions, forwarded.Key{Kind: forwarded.ByEngineIO}),
		keep:           c.NoHandBack,
		proxyProtocol:  c.Balancer.Clients.ProxyProtocol,
		leaveProxy:     c.Balancer.Clients.LeaveProxy,
		accessLog:      a.access != "",
		nextWhenDown:   c.Balancer.WhenDown == balancer.Next,
		maxConnections: c.MaxConnections,
	}
}

// readAll reads it, and checks what can be checked without opening anything.
func readAll(c *cli.Context, logs io.Writer) (asked, error) {
	command, from, err := layer(c)
	v := values{Context: c, from: from, err: err}
	a := asked{
		config: master.Config{Balancer: balancer.DefaultConfig(), Supervisor: supervisor.DefaultConfig()},
		access: c.String("access-log"),
		json:   c.Bool("log-json"),
		opens:  opener{free: c.Bool("freebind"), drops: c.Bool("drop-root")},
		drop:   c.Bool("drop-root"),
		from:   from,
	}
	config := &a.config
	config.Supervisor.Command = command
	config.NoHandBack = !c.Bool("hand-back")
	config.Name, config.Version = c.String("name"), version()
	config.Logger = logging.ForOperators(hclog.New(&hclog.LoggerOptions{
		Name:       "handfast",
		Level:      hclog.LevelFromString(c.String("log-level")),
		JSONFormat: a.json,
		Output:     logs,
	}), troubleName)
	v.waiting(&config.Balancer)
	config.Balancer.Clients = v.clients()
	v.lifetimes(&config.Supervisor)
	config.SessionIdle = v.duration("session-idle", 0)
	a.idle = v.IsSet("session-idle")
	config.StopDelay = v.duration("stop-delay", 0)
	config.DrainAffinity = v.duration("drain-affinity", 0)
	config.MaxConnections = v.number("max-connections-per-slot", 0, math.MaxInt32)
	v.rights(&config.Supervisor)
	v.setting(&config.Supervisor.Setting)
	a.opens.ebpf = ebpf(v.choice("ebpf", ebpfWords...))
	a.route = route(v.choice("route", routeWords...))
	a.link = links[v.choice("worker-link", linkWords...)]
	v.choice("log-level", "trace", "debug", "info", "warn", "error")
	config.ReadyWhen, config.Supervisor.Probe = v.readyWhen()
	config.HearNotices = v.Bool("sd-notify")
	config.Supervisor.NeedsNotice = v.String("ready-when") == readyNotify
	config.DrainSignal = v.drainSignal("drain-signal")
	a.answers = v.answering()
	for _, path := range v.list("restart-on-change") {
		a.follow = append(a.follow, v.absolute("restart-on-change", path))
	}
	a.listen = v.listens()
	v.apart(a.answers.addresses, a.listen)
	a.output = outputWords[v.choice("worker-output", outputWords...)]
	if unknown := v.variables(); v.err == nil && len(unknown) > 0 {
		config.Logger.Warn("variables in the environment that no flag reads", "names", strings.Join(unknown, " "))
	}
	return a, v.err
}

// waiting reads how connections wait, and are refused.
func (v *values) waiting(b *balancer.Config) {
	b.RetryDelay = v.duration("retry-delay", time.Millisecond)
	b.MaxRetries = v.number("max-retries", 0, math.MaxInt32)
	if v.err == nil && time.Duration(b.MaxRetries) > balancer.MaxPatience/b.RetryDelay {
		v.fail("--max-retries %d: with --retry-delay %v that is more than %v", b.MaxRetries, b.RetryDelay, balancer.MaxPatience)
	}
	b.MaxParked = v.number("max-parked", 0, math.MaxInt32)
	b.IdleTimeout = v.duration("idle-timeout", time.Millisecond)
	if v.err == nil && b.IdleTimeout > balancer.MaxPatience {
		v.fail("--idle-timeout %v: want at most %v", b.IdleTimeout, balancer.MaxPatience)
	}
	b.MaxClient = v.number("max-per-client", 0, math.MaxInt32)
	b.WhenDown = []balancer.WhenDown{balancer.Wait, balancer.Next}[v.choice("when-down", "wait", "next")]
	b.Refuse = []balancer.Refuse{balancer.RefuseHTTP, balancer.RefuseClose}[v.choice("refuse", "http", "close")]
}

// lifetimes reads how many workers there are, and how long each phase of their lives may last.
func (v *values) lifetimes(s *supervisor.Config) {
	s.Workers = v.workers()
	s.ReadyTimeout = v.duration("ready-timeout", time.Millisecond)
	s.Probation = v.duration("probation", 0)
	s.DrainTimeout = v.duration("drain-timeout", 0)
	s.DrainSpread = v.duration("drain-spread", 0)
	if v.err == nil && s.DrainSpread > s.DrainTimeout {
		v.fail("--drain-spread %v: want at most --drain-timeout, %v", s.DrainSpread, s.DrainTimeout)
	}
	s.MaxDraining = v.number("max-draining", 0, math.MaxInt32)
	s.StopTimeout = v.duration("stop-timeout", 0)
	s.KillTimeout = v.duration("kill-timeout", 0)
	s.MinUptime = v.duration("min-uptime", 0)
	v.watchdog(s)
	v.recycling(s)
	s.BackoffMin = v.duration("backoff-min", time.Millisecond)
	s.BackoffMax = v.duration("backoff-max", s.BackoffMin)
}

// serve runs a master until a signal stops it.
func serve(ctx context.Context, a asked, log *logging.Queue) error {
	config := a.config
	before, err := inherited()
	if err != nil {
		return err
	}
	orAgain := func(err error) error { return before.orAgain(err, config.Logger, log) }
	if err := canRun(&config.Supervisor); err != nil {
		return orAgain(fmt.Errorf("cannot run workers: %w", err))
	}
	log.SetHooks(logging.Hooks{LeftOut: func(lines int) { config.Logger.Warn("log not complete: lines were left out", "left_out", lines) }})
	access, err := openAccessLog(a.access, a.json, &config)
	if err != nil {
		return orAgain(err)
	}
	defer access.close()
	if before != nil && !before.bundle.IsDryRun() {
		before.Log.resume(log)
		before.Access.resume(access.Queue)
	}
	sockets, err := a.answers.listen(ctx, config.Logger, before)
	if err != nil {
		return orAgain(err)
	}
	defer closeAll(sockets)
	files, err := a.openFiles()
	if err != nil {
		return orAgain(err)
	}
	defer files.Close()
	on, err := a.openAddresses(ctx, &config, before)
	if err != nil {
		return orAgain(err)
	}
	next := newSuccessor(&config, on, before, sockets, log, access)
	if next.program, err = thisProgram(); err != nil {
		return orAgain(err)
	}
	if err := loadNodeModule(&config); err != nil {
		config.Logger.Warn("Node workers keep connections, and do not name themselves in ids of Engine.IO's sessions: a further client on a connection is served where the first one belongs", "err", err,
			"remedy", "turn off the proxy's pool, or let RUNTIME_DIRECTORY or XDG_RUNTIME_DIR name a directory for the module that they load")
	}
	if a.drop {
		if err := dropRoot(&config, sockets, a.access); err != nil {
			return orAgain(err)
		}
	}
	defer collectOutput(a, &config, before, log)()
	if next.counts, err = count(&config, log, access, before); err != nil {
		return orAgain(err)
	}
	if next.master, err = master.New(config); err != nil {
		return orAgain(err)
	}
	if before != nil {
		log.Flush() // "ready" is what comes last
		if err := before.bundle.Ready(); err != nil {
			return orAgain(err)
		}
		before.bundle.Close()
	}
	defer reloadOnChange(ctx, files, next.master, config.Logger)()
	return serveUntilStopped(ctx, next, config.Logger)
}

// loadNodeModule gives Node workers the module by which they hand connections back, and name themselves in ids of Engine.IO's sessions.
func loadNodeModule(config *master.Config) error {
	rules := &config.Balancer.Clients.Rules
	if config.Link != master.LinkNode || !rules.Looks() || config.NoHandBack && len(rules.Sessions) == 0 {
		return nil
	}
	directory, err := admin.Directory()
	if err != nil {
		return err
	}
	if config.Supervisor.Rights.User != nil { // who may enter it, and nothing more
		if err := os.Chmod(directory, 0o711); err != nil {
			return err
		}
	}
	config.NodeModule, err = nodeipc.NewModule(directory)
	return err
}

// count has what happens counted, for /metrics; from where the program before has come to.
func count(config *master.Config, log *logging.Queue, access accessLog, before *predecessor) (*metrics.Metrics, error) {
	counts := metrics.New()
	counts.LinesLeftOut("log", log.LeftOut)
	if access.Queue != nil {
		counts.LinesLeftOut("access", access.LeftOut)
	}
	config.Balancer.OnOutcome, config.OnEvent = counts.Outcome, counts.Event
	if before == nil {
		return counts, nil
	}
	return counts, counts.Restore(before.bundle)
}

// serveUntilStopped runs a master, beside all that asks it for something: signals, the service manager,
// and clients of the admin sockets.
func serveUntilStopped(ctx context.Context, next *successor, log hclog.Logger) error {
	m := next.master
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	signals, err := reexec.Notify(unix.SIGUSR2, unix.SIGHUP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1)
	if err != nil {
		return err
	}
	defer signals.Stop()
	go handleSignals(ctx, signals, output.IsTerminal(os.Stdin), m, next, log, kill)
	defer notifyManager(ctx, m, log)()
	defer serveAdmin(m, next, next.counts, next.sockets, log.Named("admin"))()
	if os.Getpid() == 1 { // of a container
		go supervisor.ReapOrphans(ctx)
	}
	return m.Run(ctx)
}

// notifyManager tells the service manager what the master does, if there is one that wants to
// know, until the function that it returns is called.
func notifyManager(ctx context.Context, m *master.Master, log hclog.Logger) (stop func()) {
	notifier, err := systemd.Open()
	if err != nil {
		log.Warn("cannot tell the service manager what happens", "err", err)
	}
	if notifier == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer notifier.Close()
		few := logging.Limit(log, logging.Few)
		notifier.Follow(ctx, m, func(err error) { few.Warn("the service manager was not told", "err", err) })
	}()
	return func() { cancel(); <-ended }
}
