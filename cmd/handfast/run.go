package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

// defaultListen is where to listen when nobody says.
const defaultListen = ":8080"

// runCommand is `handfast run`.
func runCommand(logs io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "start workers and hand connections to them",
		ArgsUsage: "-- COMMAND [ARG...]",
		Description: "Starts COMMAND once per slot. Signals: SIGUSR2 or SIGHUP replaces all workers one\n" +
			"by one, SIGTTIN and SIGTTOU add and remove a slot, SIGTERM and SIGINT finish\n" +
			"what is open and stop, a second one stops at once.\n\n" +
			"Behind nginx, HAProxy or another HTTP proxy clients are told apart only with\n" +
			"--behind-proxy, behind a TCP proxy only with --proxy-protocol.\n\n" +
			"Exit status: 0 stopped as asked; 1 could not start, could not go on, or was\n" +
			"stopped by a second signal; 2 wrong flags. Workers that fail do not end it:\n" +
			"they are started again, and clients of their slots wait and then get 502.",
		Flags: runFlags(),
		Action: func(c *cli.Context) error {
			config, plan, err := configFrom(c, logs)
			if err != nil {
				return err
			}
			v := values{Context: c}
			answers := v.answering()
			if v.err != nil {
				return v.err
			}
			return serve(c.Context, config, plan, c.StringSlice("listen"), answers)
		},
	}
}

// configFrom turns flags into a configuration, all but the listeners.
func configFrom(c *cli.Context, logs io.Writer) (master.Config, plan, error) {
	config := master.Config{Balancer: master.DefaultBalancerConfig(), Supervisor: supervisor.DefaultConfig()}
	v := values{Context: c}

	b := &config.Balancer
	b.RetryDelay = v.duration("retry-delay", time.Millisecond)
	b.MaxRetries = v.number("max-retries", 0, math.MaxInt32)
	if v.err == nil && time.Duration(b.MaxRetries) > master.MaxPatience/b.RetryDelay {
		v.fail("--max-retries %d: with --retry-delay %v that is more than %v", b.MaxRetries, b.RetryDelay, master.MaxPatience)
	}
	b.MaxParked = v.number("max-parked", 0, math.MaxInt32)
	b.WhenDown = []master.WhenDown{master.Wait, master.Next}[max(v.choice("when-down", "wait", "next"), 0)]
	b.Refuse = []master.Refuse{master.RefuseHTTP, master.RefuseClose}[max(v.choice("refuse", "http", "close"), 0)]
	b.Clients = v.clients()

	s := &config.Supervisor
	s.Command = c.Args().Slice()
	s.Workers = v.workers()
	s.ReadyTimeout = v.duration("ready-timeout", time.Millisecond)
	s.DrainTimeout = v.duration("drain-timeout", 0)
	s.StopTimeout = v.duration("stop-timeout", 0)
	s.KillTimeout = v.duration("kill-timeout", 0)
	s.MinUptime = v.duration("min-uptime", 0)
	s.BackoffMin = v.duration("backoff-min", time.Millisecond)
	s.BackoffMax = v.duration("backoff-max", s.BackoffMin)

	p := plan{route(max(v.choice("route", routeWords...), 0)), link(max(v.choice("worker-link", linkWords...), 0))}
	v.choice("log-level", "trace", "debug", "info", "warn", "error")
	config.Logger = hclog.New(&hclog.LoggerOptions{
		Name:       "handfast",
		Level:      hclog.LevelFromString(c.String("log-level")),
		JSONFormat: c.Bool("log-json"),
		Output:     logs,
	})
	config.ReadyWhen, s.Probe = v.readyWhen()
	config.DrainSignal = v.signal("drain-signal")
	config.Name, config.Version = c.String("name"), version()
	if v.err == nil && len(s.Command) == 0 {
		v.fail("run: no COMMAND to run as a worker; write it behind --")
	}
	return config, p, v.err
}

// serve runs a master until a signal stops it.
func serve(ctx context.Context, config master.Config, plan plan, addresses []string, answers answering) error {
	if _, err := exec.LookPath(config.Supervisor.Command[0]); err != nil {
		return fmt.Errorf("cannot run workers: %w", err)
	}
	sockets, err := answers.listen(ctx, config.Logger)
	if err != nil {
		return err
	}
	defer closeAll(sockets)
	if err := plan.settle(ctx, &config, addresses); err != nil {
		return err
	}
	m, err := master.New(config)
	if err != nil {
		return err
	}
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGUSR2, unix.SIGHUP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGTERM, unix.SIGINT)
	// Who reads our log may go away: that ends a Go program unless it is caught
	// (os/signal, SIGPIPE).
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	defer signal.Stop(signals)
	go handleSignals(ctx, signals, m, config.Logger, kill)
	stop := serveAdmin(m, sockets, config.Logger.Named("admin"))
	defer stop()
	return m.Run(ctx)
}

// errForced: somebody did not want to wait.
var errForced = errors.New("stopped at once by a second signal")

// handleSignals turns signals into actions until ctx ends.
func handleSignals(ctx context.Context, signals <-chan os.Signal, m *master.Master, log hclog.Logger, kill context.CancelCauseFunc) {
	stopping := false
	for {
		select {
		case sig := <-signals:
			log.Debug("signal received", "signal", sig.String())
			switch sig {
			case unix.SIGUSR2, unix.SIGHUP:
				go reload(ctx, log, m)
			case unix.SIGTTIN:
				report(log, m.ScaleBy(1))
			case unix.SIGTTOU:
				report(log, m.ScaleBy(-1))
			case unix.SIGTERM, unix.SIGINT:
				if stopping {
					kill(errForced)
					return
				}
				stopping = true
				m.Stop()
			}
		case <-ctx.Done():
			return
		}
	}
}

// reload waits for a reload. How it ends is logged by the supervisor, if it begins.
func reload(ctx context.Context, log hclog.Logger, m *master.Master) {
	if err := m.Reload(ctx); errors.Is(err, supervisor.ErrStopped) {
		log.Warn("no reload: stopping")
	}
}

func report(log hclog.Logger, err error) {
	if err != nil {
		log.Warn("number of slots not changed", "err", err)
	}
}
