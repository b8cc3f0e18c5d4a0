package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/metrics"
)

// adminOff is the value of --admin for no admin socket.
const adminOff = "off"

func nameFlag() cli.Flag {
	return stringFlag("name", admin.DefaultName, "`NAME` of this handfast, which tells it from others on this machine")
}

// askFlags say which master is asked.
func askFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		nameFlag(),
		&cli.StringSliceFlag{Name: "admin", EnvVars: env("admin"), DefaultText: "by --name",
			Usage: "`PATH|HOST:PORT` where it listens for this"},
	}, more...)
}

// answering is where a master answers status and commands.
type answering struct {
	name      string
	addresses []admin.Address
	chosen    bool // by somebody: else one for the name
}

// answering reads --name and --admin of `handfast run`.
func (v *values) answering() answering {
	given := v.admins()
	a := answering{name: v.String("name"), chosen: len(given) > 0}
	if err := admin.CheckName(a.name); err != nil {
		v.fail("--name: %w", err)
	}
	if slices.Contains(given, adminOff) {
		if len(given) > 1 {
			v.fail("--admin off, and something else too: %s", strings.Join(given, ", "))
		}
		return a
	}
	for _, value := range given {
		addr, err := admin.ParseAddress(value)
		if err != nil {
			v.fail("--admin: %w", err)
		}
		a.addresses = append(a.addresses, addr)
	}
	return a
}

// admins returns the values of --admin; an empty one is none.
func (v *values) admins() []string {
	return slices.DeleteFunc(v.StringSlice("admin"), func(value string) bool { return value == "" })
}

// listen opens what is answered on; the caller owns it. That there is no socket where nobody has
// asked for one is a warning only: the next one of several on a machine is to start, too.
func (a answering) listen(ctx context.Context, log hclog.Logger, before *predecessor) (lns []net.Listener, err error) {
	there, err := before.sockets()
	if err != nil {
		return nil, err
	}
	listen := func(addr admin.Address) (net.Listener, error) {
		if ln, ok := there[addr]; ok {
			delete(there, addr)
			return ln, nil
		}
		return admin.Listen(ctx, addr)
	}
	addresses := a.addresses
	if !a.chosen && before != nil && !before.Chosen { // the default may be another one now (--drop-root)
		addresses = slices.Collect(maps.Keys(there))
	} else if !a.chosen {
		addr, err := admin.DefaultAddress(a.name)
		if err == nil {
			addresses = []admin.Address{addr}
		} else {
			log.Warn(noSocket, "err", err)
		}
	}
	for _, addr := range addresses {
		ln, err := listen(addr)
		switch {
		case err == nil:
			lns = append(lns, adminSocket{ln, addr})
		case !a.chosen:
			log.Warn(noSocket, "err", err)
		default:
			closeAll(lns)
			return nil, err
		}
	}
	for _, ln := range there { // nobody wants it any more
		ln.Close()
	}
	return lns, nil
}

// adminSocket is one where a master is asked.
type adminSocket struct {
	net.Listener
	asked admin.Address // with port 0 it listens on another
}

const noSocket = "no admin socket: handfast status and the like cannot ask this one"

// serveAdmin serves status and commands of a master until stop, which waits for the end.
func serveAdmin(m *master.Master, next *successor, counts *metrics.Metrics, lns []net.Listener, log hclog.Logger) (stop func()) {
	server := admin.NewServer(m, log)
	server.UpgradeBy(next.take)
	server.Handle("GET /metrics", counts.Handler(m.Status))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	for _, ln := range lns {
		log.Info("admin socket", "address", ln.Addr().String())
		serving.Go(func() {
			if err := server.Serve(ctx, ln); err != nil {
				log.Error("no more status and commands", "address", ln.Addr().String(), "err", err)
			}
		})
	}
	return func() {
		cancel()
		serving.Wait()
	}
}

// master returns a client of the master that the flags of a command name.
func (v *values) master() (*admin.Client, error) {
	if given := v.admins(); len(given) > 0 { // of several, as for `handfast run`, the first will do
		if given[0] == adminOff {
			return nil, usagef("--admin off: then nobody answers; where is this one to be asked?")
		}
		addr, err := admin.ParseAddress(given[0])
		if err != nil {
			return nil, usagef("--admin: %w", err)
		}
		return admin.NewClient(addr), nil
	}
	if err := admin.CheckName(v.String("name")); err != nil {
		return nil, usagef("--name: %w", err)
	}
	return admin.Find(v.Context.Context, v.String("name"))
}

// askCommand makes a command that asks a running master.
func askCommand(command cli.Command, do func(c *cli.Context, m *admin.Client) error) *cli.Command {
	command.Flags = askFlags(command.Flags...)
	operands := 0
	if command.ArgsUsage != "" {
		operands = 1
	}
	command.Action = func(c *cli.Context) error {
		if c.NArg() != operands {
			return usagef("%s: want %s, got %d arguments", command.Name, orNothing(command.ArgsUsage), c.NArg())
		}
		v := values{Context: c}
		m, err := v.master()
		if err != nil {
			return err
		}
		return do(c, m)
	}
	return &command
}

func orNothing(operand string) string {
	if operand == "" {
		return "no arguments"
	}
	return "one " + operand
}

func reloadCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "reload",
		Usage: "replace all workers of the running master, one by one",
		Description: "Waits for the end. Exit status: 0 all slots have a worker of the new generation; 1 the\n" +
			"new version did not come up, and the slots that were not reached keep their workers.",
	}, func(c *cli.Context, m *admin.Client) error {
		began, last := time.Now(), admin.Progress{}
		err := m.Reload(c.Context, func(p admin.Progress) { last = p; printStep(c, p) })
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "reloaded: %d slots run generation %d, after %s\n", last.Slots, last.Generation, time.Since(began).Round(10*time.Millisecond))
		return nil
	})
}

func drainCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:      "drain",
		Usage:     "give a slot of the running master a fresh worker",
		ArgsUsage: "SLOT",
		Description: "Starts a worker of the same generation. When it is ready it takes the slot over; from then\n" +
			"on the old one gets no new connections, finishes those that it has, and exits. The slot's\n" +
			"clients stay in it. If the fresh worker does not come up the old one stays, and the exit\n" +
			"status is 1.",
	}, func(c *cli.Context, m *admin.Client) error {
		slot, err := strconv.Atoi(c.Args().First())
		if err != nil {
			return usagef("drain: %q is not the number of a slot", c.Args().First())
		}
		return m.Drain(c.Context, slot, func(p admin.Progress) { printStep(c, p) })
	})
}

func stopCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "stop",
		Usage: "stop the running master",
		Description: "Nothing more is accepted, workers finish what they have, within the master's\n" +
			"--stop-timeout. Waits until the master has ended.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "no-wait", Usage: "do not wait until it has ended"}},
	}, func(c *cli.Context, m *admin.Client) error {
		err := m.Stop(c.Context, !c.Bool("no-wait"), func(p admin.Progress) { printStep(c, p) })
		if err == nil && !c.Bool("no-wait") {
			fmt.Fprintln(c.App.Writer, "stopped")
		}
		return err
	})
}

func scaleCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:      "scale",
		Usage:     "change the number of slots of the running master",
		ArgsUsage: "N",
		Description: "New slots come into use, in order, when their workers are ready; workers of slots that go\n" +
			"finish what they have. When N slots become N+1, about 1/(N+1) of the clients move.",
	}, func(c *cli.Context, m *admin.Client) error {
		n, err := strconv.Atoi(c.Args().First())
		if err != nil {
			return usagef("scale: %q is not a number of slots", c.Args().First())
		}
		scaled, err := m.Scale(c.Context, n)
		if err == nil {
			fmt.Fprintf(c.App.Writer, "%d slots (were %d)\n", scaled.Slots, scaled.Were)
		}
		return err
	})
}

// printStep shows one step of what a master was asked for.
func printStep(c *cli.Context, p admin.Progress) {
	w := c.App.Writer
	switch p.Step {
	case admin.StepWaiting:
		fmt.Fprintln(w, "waiting for the reload in progress")
	case admin.StepStarting:
		fmt.Fprintf(w, "slot %d: worker %d starts\n", *p.Slot, p.PID)
	case admin.StepReplaced:
		fmt.Fprintf(w, "slot %d: worker %d serves (%d of %d)\n", *p.Slot, p.PID, p.Done, p.Slots)
	case admin.StepStopping:
		if p.Workers > 0 {
			fmt.Fprintf(w, "stopping: workers that finish: %d\n", p.Workers)
		}
	case admin.StepFinished:
		if p.Slot != nil {
			fmt.Fprintf(w, "slot %d: worker %d serves\n", *p.Slot, p.PID)
		}
	}
}

// place asks the running master where a client belongs, if there is one.
func (v *values) place(client string) (p master.Placement, asked bool, err error) {
	if slices.Equal(v.admins(), []string{adminOff}) {
		return p, false, nil
	}
	m, err := v.master()
	if errors.Is(err, admin.ErrNotRunning) && len(v.admins()) == 0 && !v.IsSet("name") {
		return p, false, nil
	}
	if err == nil {
		p, err = m.Place(v.Context.Context, client)
	}
	return p, true, err
}
