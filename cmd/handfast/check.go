package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/output"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
	"github.com/handfast/handfast/master/unixsocket"
)

// What it is was printed.
var (
	errLacking = errors.New("something is missing on this machine")
	errTaken   = errors.New("nothing is missing, but an address or the name is in use: run would not start beside what has it")
)

// checkCommand is `handfast check`.
func checkCommand(logs io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "say what run would do here, and what would keep it from that",
		ArgsUsage: "[-- COMMAND [ARG...]]",
		Description: "Takes what run takes, and starts nothing. Prints all settings and where each comes\n" +
			"from, in the form of a configuration file; then tries as this user, for real, what\n" +
			"they need, and says what they do not need but what is good to know.\n\n" +
			"Exit status: 0 run would start; 1 it would not, or something is missing or too small\n" +
			"that it would soon want; 2 the configuration makes no sense. All that is wrong is\n" +
			"named at once.",
		Flags: runFlags(),
		Action: func(c *cli.Context) error {
			a, err := readAll(c, logs)
			if err != nil {
				return err
			}
			if err := writeEffective(c.App.Writer, c, a); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer)
			t := checking{w: c.App.Writer, asked: a}
			t.routes(c.Context)
			t.addresses(c.Context)
			t.machine()
			t.workers()
			switch {
			case t.wrong != nil:
				return t.wrong
			case t.lacking:
				return errLacking
			case t.taken:
				return errTaken
			}
			return nil
		},
	}
}

// checking tries what the settings may need, and prints what came of it.
type checking struct {
	w io.Writer
	asked
	plan    decision
	planned bool // there is a command, and it makes sense
	lacking bool
	taken   bool  // an address or the name is in use
	wrong   error // the settings make no sense
}

func (t *checking) say(what, answer string) { fmt.Fprintf(t.w, "%-36s %s\n", what, answer) }

// try prints how something that is needed is.
func (t *checking) try(what string, err error) {
	if err == nil {
		t.say(what, "ok")
		return
	}
	t.say(what, logging.WithoutPackages(err.Error()))
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, admin.ErrInUse) {
		t.taken = true
		return
	}
	t.lacking = true
}

// note prints what nobody needs to change.
func (t *checking) note(what, text string) { t.say(what, "note: "+text) }

// routes tries both routes and what their links need, and says what would be taken. Without a
// command all of them may be wanted.
func (t *checking) routes(ctx context.Context) {
	kernel := tryKernel(ctx)
	t.planned = len(t.config.Supervisor.Command) > 0
	var undecided error
	if t.planned {
		r := t.intent()
		t.plan, undecided = r.decide(r.gather(t.config.Supervisor.Setting, t.config.Supervisor.Command, false))
		t.planned = undecided == nil
	}
	for _, c := range []struct {
		what   string
		lacks  error
		needed bool
	}{
		{"--route kernel", kernel, t.plan.route == routeKernel && !t.plan.fallback},
		{"--worker-link any", checkBind(), t.plan.link == master.LinkAny},
		{"--worker-link any, the master routes", checkInjection(), t.plan.link == master.LinkInject},
	} {
		if c.lacks != nil && t.planned && !c.needed {
			t.note(c.what, logging.WithoutPackages(c.lacks.Error()))
			continue
		}
		t.try(c.what, c.lacks)
	}
	switch _, usage := errors.AsType[usageError](undecided); {
	case usage:
		t.wrong = undecided
	case undecided != nil:
		t.try("how workers get connections", undecided)
	case t.planned:
		if t.plan.fallback && kernel != nil {
			t.plan = t.plan.withoutKernel(kernel)
		}
		t.sayPlan()
	}
}

// sayPlan says what run would take, and why.
func (t *checking) sayPlan() {
	d := t.plan
	takes := fmt.Sprintf("--route %v, --worker-link %s", d.route, d.link.Flag())
	if d.notKernel != nil {
		takes += "; the kernel cannot: " + logging.WithoutPackages(d.notKernel.Error())
	}
	t.say("run takes", takes)
	if d.route == routeKernel {
		t.say("a reload", "takes all clients to the new workers at once; --session or --drain-affinity leaves those of sessions where they are, by the master's route")
	}
	if d.route == routeKernel {
		t.sayEBPF()
	}
	if d.why != "" {
		t.say("--worker-link auto", d.link.Flag()+": "+d.why)
	}
	for _, remark := range d.remarks {
		switch {
		case remark.warning:
			t.note("run warns", remark.String())
		case remark.message != linkChosen: // which was said
			t.say("run says", remark.String())
		}
	}
	if t.config.DrainSignal == 0 && d.link.Foreign() {
		signal, why := master.ChooseDrainSignal(t.config.Supervisor.Command)
		t.say("--drain-signal auto", signal+": "+why)
	}
}

// sayEBPF says whether the kernel can count what comes to slots.
func (t *checking) sayEBPF() {
	what := "--ebpf " + ebpfWords[t.opens.ebpf]
	switch err := t.opens.ebpf.check(t.config.Supervisor.Workers); {
	case err == nil:
		t.say(what, "the kernel counts what comes to slots")
	case t.opens.ebpf == ebpfOn:
		t.try(what, err)
	default:
		t.note(what, "nobody counts what comes to slots: "+logging.WithoutPackages(err.Error()))
	}
}

// tryKernel opens the largest group of listeners that there may be, on a free port.
func tryKernel(ctx context.Context) error {
	g, err := reuseport.Listen(ctx, "127.0.0.1:0", hash.DefaultConfig(), reuseport.MaxSlots)
	if err != nil {
		return fmt.Errorf("%w; without it use --route master", err)
	}
	return g.Close()
}

// addresses tries all that would be listened on, and the name.
func (t *checking) addresses(ctx context.Context) {
	all := t.asked.addresses()
	if t.plan.follow {
		t.note("--listen", "none, and what systemd passes does not count here: run listens where the first worker does, not on "+defaultListen)
		all = nil
	}
	for _, address := range all {
		if path := pathOfSocket(address); path != "" {
			t.try("--listen "+address, remediedSocket(unixsocket.Try(path)))
		} else {
			t.try("--listen "+address, tryAddress(ctx, address, t.opens.free))
		}
	}
	t.slotAddresses()
	if t.answers.byName {
		switch err := admin.Try(admin.ByName(t.answers.name)); {
		case errors.Is(err, admin.ErrInUse):
			t.try("--name "+t.answers.name, err)
		case err != nil:
			t.note("--name "+t.answers.name, "run goes on without a socket for status and commands: "+err.Error())
		default:
			t.try("--name "+t.answers.name, nil)
		}
	}
	for _, a := range t.answers.addresses {
		err := admin.Try(a)
		if a.Network != "unix" {
			err = tryAddress(ctx, a.Address, false)
			if same := twice(a.Address, all); err == nil && same != nil { // as the default, which nobody has typed
				err = fmt.Errorf("%w: %w", unix.EADDRINUSE, same)
			}
		}
		t.try("--admin "+a.Address, err)
	}
	if t.access != "" {
		t.try("--access-log "+t.access, tryAccessLog(t.access))
	}
	if len(t.follow) > 0 {
		files, err := t.openFiles()
		files.Close()
		t.try("--restart-on-change", err)
	}
	if t.config.Balancer.Clients.Hash.Seed == 0 && slices.ContainsFunc(all, isPublic) {
		t.note("--hash-seed 0", "anybody can compute which addresses share a slot, and fill one of them; if those who can connect are not to be trusted with that, give a number that they do not know")
	}
}

// slotAddresses says which address is whose. What keeps run from them has been said, if there is a command.
func (t *checking) slotAddresses() {
	own := t.config.Balancer.Clients.Hash.Slots
	if !own.IsValid() {
		return
	}
	what, last := "--slot-address "+own.String(), t.config.Supervisor.Workers-1
	err := checkSlotAddresses(own, last+1)
	if err == nil {
		t.say(what, fmt.Sprintf("ok, slot 0 is %v, slot %d is %v", own.Of(0), last, own.Of(last)))
		return
	}
	switch lacks := strings.TrimPrefix(err.Error(), what+": "); {
	case t.intent().freebind:
		t.note(what, lacks+"; with --freebind it may come later")
	case len(t.config.Supervisor.Command) == 0:
		t.try(what, errors.New(lacks))
	}
}

// isPublic tells whether others than this machine and private networks may reach an address.
func isPublic(address string) bool {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return false
	}
	ip := addr.AddrPort().Addr().Unmap()
	return !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast()
}

// tryAccessLog tells whether the file can be written. It does not make one.
func tryAccessLog(path string) error {
	if path == "-" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		return file.Close()
	case errors.Is(err, unix.ENXIO): // a FIFO that nobody reads yet
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	dir := filepath.Dir(path)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return &os.PathError{Op: "create a file in", Path: dir, Err: unix.ENOTDIR}
	}
	return nil
}

// machine tries what is too small.
func (t *checking) machine() {
	config := t.config
	if t.outputMode() != "raw" { // run would read what workers print
		config.Supervisor.NewOutput = output.New(output.Config{}).NewOutput
	}
	t.try("open files", tryFiles(&config))
	t.try("backlog", tryBacklog())
}

// workers tries what a worker needs to be started, as the user that it runs as.
func (t *checking) workers() {
	s := &t.config.Supervisor
	if s.Setting.Directory != "" || len(s.Setting.EnvFiles) > 0 {
		t.try("directory, variables", s.Setting.Check(s.Rights))
	}
	if len(s.Command) == 0 {
		return
	}
	path, err := s.Setting.Find(s.Command[0])
	if err == nil {
		err = runnable(path, s)
	}
	t.try("command", err)
	self, err := os.Executable()
	if err == nil && s.Rights.User != nil && t.plan.link.Foreign() {
		t.try("handfast itself", runnable(self, s))
	}
}

// runnable tells whether workers, which may be of another user, can run a program.
func runnable(path string, s *supervisor.Config) error {
	if s.Rights.User == nil {
		return nil // it was found
	}
	test := exec.Command("test", "-x", path) // access(2) itself, with all that the kernel looks at
	test.Dir = s.Setting.Directory
	test.SysProcAttr = &syscall.SysProcAttr{Credential: s.Rights.User}
	if _, no := errors.AsType[*exec.ExitError](test.Run()); no {
		return fmt.Errorf("%s: user %d, group %d cannot run it: chmod a+rx it and each directory above, or choose another --user", path, s.Rights.User.Uid, s.Rights.User.Gid)
	}
	return nil
}

// listenError says more about why an address cannot be listened on, and what to do.
func listenError(ctx context.Context, address string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%s: %w %s", address, unix.EADDRINUSE, inWay(ctx, address))
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w: run as root, or with CAP_NET_BIND_SERVICE, or have systemd listen (ListenStream=%[1]s)", address, unix.EACCES)
	}
	return err
}

// inWay names the process that listens on an address, and says what to do about it.
func inWay(ctx context.Context, address string) string {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return ""
	}
	owners, _ := reuseport.Owners(addr.AddrPort())
	if len(owners) == 0 {
		return fmt.Sprintf("by a process that cannot be seen from here: as root, ss -ltnp 'sport = :%d' tells", addr.Port)
	}
	var names, pids []string
	for _, owner := range owners {
		if name := admin.NameOf(ctx, owner.PID); name != "" {
			return fmt.Sprintf("by the handfast --name %s, pid %d: handfast stop --name %[1]s ends it, handfast upgrade --name %[1]s has it read its configuration again", name, owner.PID)
		}
		names, pids = append(names, owner.String()), append(pids, fmt.Sprint(owner.PID))
	}
	return fmt.Sprintf("by %s; if it is left from an earlier run, end it: kill %s", strings.Join(names, ", "), strings.Join(pids, " "))
}
