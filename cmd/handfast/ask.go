package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/logging"
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
	addresses []admin.Address // that were asked for
	byName    bool            // and the socket that the name stands for: no other path was, nor none
}

// answering reads --name and --admin of `handfast run`.
func (v *values) answering() answering {
	a := answering{name: v.String("name"), byName: true}
	if err := admin.CheckName(a.name); err != nil {
		v.fail("--name: %w", err)
	}
	off, path := false, ""
	for _, value := range v.admins() {
		if value == adminOff {
			off = true
			continue
		}
		addr, err := admin.ParseAddress(value)
		if err != nil {
			v.fail("--admin: %w", err)
		}
		if addr.Network == "unix" {
			path = value
		}
		a.addresses = append(a.addresses, addr)
	}
	if off && path != "" {
		v.fail("--admin off, and --admin %s: want a socket, or none", path)
	}
	a.byName = !off && path == ""
	return a
}

// apart wants that addresses of --admin are neither those of --listen nor each other's.
func (v *values) apart(admins []admin.Address, listens []string) {
	others := slices.Clone(listens)
	for _, a := range admins {
		address := a.Address
		if a.Network == "unix" {
			address = unixScheme + address
		}
		if err := twice(address, others); err != nil {
			v.fail("--admin %s: %w", a, err)
		}
		others = append(others, address)
	}
}

// admins returns the values of --admin; an empty one is none.
func (v *values) admins() []string {
	return slices.DeleteFunc(v.list("admin"), func(value string) bool { return value == "" })
}

// listen opens what is answered on; the caller owns it. A socket that another one answers on is
// an error: commands would go to that. Where there can be no socket nobody has asked for, a warning
// is enough: a container may have no directory for it.
func (a answering) listen(ctx context.Context, log hclog.Logger, before *predecessor) (lns []net.Listener, err error) {
	there, err := before.sockets()
	if err != nil {
		return nil, err
	}
	open := func(addr admin.Address) error {
		ln, ok := there[addr]
		if delete(there, addr); !ok {
			if ln, err = admin.Listen(ctx, addr); err != nil {
				return err
			}
		}
		lns = append(lns, adminSocket{ln, addr, false})
		return nil
	}
	if a.byName {
		addr, known := before.byName() // another one than would be now, if root was dropped
		if !known {
			addr, err = admin.DefaultAddress(a.name)
		}
		if err == nil {
			err = open(addr)
		}
		switch {
		case errors.Is(err, admin.ErrInUse):
			return nil, fmt.Errorf("--name %s: a handfast of this name runs already: %w", a.name, err)
		case err != nil:
			log.Warn("no admin socket: handfast status and the like cannot ask this one", "err", err)
		default:
			lns[0] = adminSocket{lns[0].(adminSocket).Listener, addr, true}
		}
	}
	for _, addr := range a.addresses {
		if err := open(addr); err != nil {
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
	asked  admin.Address // with port 0 it listens on another
	byName bool          // nobody has asked for it
}

// serveAdmin serves status and commands of a master until stop, which waits for the end.
func serveAdmin(m *master.Master, next *successor, counts *metrics.Metrics, lns []net.Listener, log hclog.Logger) (stop func()) {
	server := admin.NewServer(m, logging.Limit(log, logging.Few)) // whoever can connect may ask
	server.UpgradeBy(next.take)
	server.MeasureBy(counts.Handler(m.Status))
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

// master returns a client of the master that the flags of a command name: by a path, else by an
// address that was typed, else by the name. An address in the environment is there for run, and comes
// last: beside it there is a socket, which takes all commands.
func (v *values) master() (*admin.Client, error) {
	var addresses []admin.Address
	given := v.admins()
	for _, value := range given {
		if value == adminOff {
			continue
		}
		addr, err := admin.ParseAddress(value)
		if err != nil {
			return nil, usagef("--admin: %w", err)
		}
		if addr.Network == "unix" {
			return admin.NewClient(addr), nil
		}
		addresses = append(addresses, addr)
	}
	off := slices.Contains(given, adminOff)
	switch {
	case off && len(addresses) == 0:
		return nil, usagef("--admin off: then nobody answers; where is this one to be asked?")
	case len(addresses) > 0 && (off || typed(v.Context)["admin"]):
		return admin.NewClient(addresses[0]), nil
	}
	name := v.String("name")
	if err := admin.CheckName(name); err != nil {
		return nil, usagef("--name: %w", err)
	}
	if !v.IsSet("name") {
		name = ""
	}
	m, err := admin.Find(v.Context.Context, name)
	if errors.Is(err, admin.ErrNotRunning) && len(addresses) > 0 {
		return admin.NewClient(addresses[0]), nil
	}
	return m, err
}

// askCommand makes a command that asks a running master.
func askCommand(command cli.Command, do func(c *cli.Context, m *admin.Client) error) *cli.Command {
	command.Flags = askFlags(command.Flags...)
	command.Action = func(c *cli.Context) error {
		operands, want := 0, "no arguments"
		if command.ArgsUsage != "" && !c.Bool("now") { // with which drain is of no slot
			operands, want = 1, "one "+command.ArgsUsage
		}
		if c.NArg() != operands {
			return usagef("%s: want %s, got %d arguments", command.Name, want, c.NArg())
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

func reloadCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "reload",
		Usage: "replace all workers of the running master, one by one",
		Description: "Waits for the end. Exit status: 0 all slots have a worker of the new generation; 1 the\n" +
			"new version did not come up, or did not last for --probation, and the slots that were not reached\n" +
			"keep their workers.",
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
		Usage:     "give a slot of the running master a fresh worker, or have workers drain that linger",
		ArgsUsage: "SLOT",
		Description: "Starts a worker of the same generation. When it is ready it takes the slot over; from then\n" +
			"on the old one gets no new connections, and when the fresh one has lasted for --probation it\n" +
			"finishes those that it has, and exits. The slot's clients stay in it. If the fresh worker\n" +
			"does not come up, or last, the old one goes on, and the exit status is 1.\n\n" +
			"With --now, and no SLOT, workers that were replaced and linger for their sessions\n" +
			"(--session-idle) finish now, in all slots and of all generations, or of those that are\n" +
			"given. status shows who lingers. Their clients get new sessions in their slots.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "now", Usage: "workers that linger drain now"},
			&cli.IntFlag{Name: "slot", DefaultText: "all", Usage: "`NUMBER` of the slot that they were in, with --now"},
			&cli.IntFlag{Name: "generation", DefaultText: "all", Usage: "`NUMBER` of the reload that started them, with --now"},
		},
	}, func(c *cli.Context, m *admin.Client) error {
		if c.Bool("now") {
			return drainNow(c, m)
		}
		if c.IsSet("slot") || c.IsSet("generation") {
			return usagef("drain: --slot and --generation say who is to drain --now; a slot's fresh worker is asked for by handfast drain SLOT")
		}
		slot, err := strconv.Atoi(c.Args().First())
		if err != nil {
			return usagef("drain: %q is not the number of a slot", c.Args().First())
		}
		return m.Drain(c.Context, slot, func(p admin.Progress) { printStep(c, p) })
	})
}

// drainNow is drain --now.
func drainNow(c *cli.Context, m *admin.Client) error {
	var of admin.Drain
	if c.IsSet("slot") {
		of.Slot = new(c.Int("slot"))
	}
	if c.IsSet("generation") {
		of.Generation = new(c.Int("generation"))
	}
	drained, err := m.DrainNow(c.Context, of)
	if err == nil {
		fmt.Fprintf(c.App.Writer, "workers that lingered and drain now: %d\n", drained.Workers)
	}
	return err
}

func stopCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "stop",
		Usage: "stop the running master",
		Description: "After --stop-delay nothing more is accepted, workers finish what they have, within the\n" +
			"master's --stop-timeout. Waits until the master has ended.",
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
	case admin.StepProving:
		if p.Slot != nil {
			fmt.Fprintf(w, "slot %d: worker %d is on probation\n", *p.Slot, p.PID)
		} else {
			fmt.Fprintln(w, "the new workers are on probation")
		}
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
