package main

import (
	"errors"
	"fmt"
	routing "github.com/handfast/handfast/master/balancer"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/link/bindswap"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reuseport"
)

// experimental is what is not chosen for anybody.
const experimental = "--worker-link any (experimental)"

// facts are what --worker-link auto is decided by.
type facts struct {
	program programs.Command // what the command comes to
	mailbox func() bool      // the command names HANDFAST_FD
	route   error            // why workers cannot be given listeners; nil: they can
	filter  func() error     // why a server cannot be given one when it binds; nil: it can
}

// choice is how workers get connections, and why.
type choice struct {
	link master.LinkKind
	why  string
}

// choose is --worker-link auto.
func (f facts) choose() (choice, error) {
	why := f.program.Why
	switch f.program.Kind {
	case programs.NodeNothing:
		return choice{}, usagef("%s: name a script", why)
	case programs.Node:
		return choice{master.LinkNode, why}, nil
	case programs.NodeStarter, programs.NodeTool:
		cannot := f.cannotListen()
		switch {
		case cannot == nil:
			return choice{master.LinkAny, why + "; to use the channel, run node itself"}, nil
		case f.program.Kind == programs.NodeTool:
			return choice{master.LinkNode, "the command is Node, and gets single connections only by its channel (" + cannot.Error() + ")"}, nil
		}
		return choice{}, usagef("%s, by which its workers would have to be served: %w; %s, or say %s", why, cannot, f.instead(), experimental)
	}
	if f.mailbox() {
		return choice{master.LinkNative, "the command names HANDFAST_FD"}, nil
	}
	return f.chooseServer()
}

// chooseServer decides for what neither is Node nor names HANDFAST_FD.
func (f facts) chooseServer() (choice, error) {
	server, known := f.program.Server()
	tooMany, isTooMany := errors.AsType[tooManySlots](f.route)
	switch {
	case f.route == nil:
	case isTooMany:
		return choice{}, usagef("--workers %d: %w; if the command knows handfast say --worker-link native", tooMany.slots, tooMany)
	case known:
		return choice{}, usagef("%s knows nothing of handfast, and cannot be given listeners (%w); say %s", server.Name, f.route, experimental)
	default:
		return choice{master.LinkNative, "it must know of handfast, since " + f.route.Error() + "; else say " + experimental}, nil
	}
	err := f.filter()
	switch {
	case errors.Is(err, errNoProc):
		return choice{}, err
	case err == nil:
		return choice{master.LinkAny, "the command neither is Node nor names HANDFAST_FD: it is served as a server that listens by itself; if it is a wrapper of a worker that knows handfast say --worker-link native"}, nil
	case server.Inherits != "":
		return choice{master.LinkActivation, server.Name + " takes inherited listeners by " + server.Inherits + "; it cannot be given one when it binds: " + withoutRemedy(err)}, nil
	default:
		return choice{}, fmt.Errorf("%w; if the command knows handfast say --worker-link native", err)
	}
}

// errNoProc: workers of links any and activation cannot be started, nor seen to be ready.
var errNoProc = errors.New("there is no /proc, by which workers are started and seen to be ready: mount it (mount -t proc proc /proc), or use --worker-link node, or native with a program that knows handfast")

// checkProc returns errNoProc where that is so.
func checkProc() error {
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return errNoProc
	}
	return nil
}

// checkFilter says why a server cannot be given a listener when it binds.
func checkFilter() error {
	if err := checkProc(); err != nil {
		return err
	}
	return bindswap.Check()
}

// withoutRemedy is an error of bindswap's for those who need none.
func withoutRemedy(err error) string {
	text, _, _ := strings.Cut(err.Error(), "; without it")
	return text
}

// cannotListen says why servers that listen by themselves cannot be served.
func (f facts) cannotListen() error {
	if f.route != nil {
		return f.route
	}
	return f.filter()
}

// instead says what to run in place of a starter.
func (f facts) instead() string {
	if f.program.Instead == nil {
		return "run node itself (-- node SCRIPT)"
	}
	return "run node itself: -- " + quoteCommand(f.program.Instead)
}

// quoteCommand writes a command as one would type it.
func quoteCommand(command []string) string {
	var words []string
	for _, word := range command {
		if word == "" || strings.ContainsAny(word, " \t\n'\"\\$`&|;<>()*?[]#~!{}") {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// tooManySlots is why the kernel cannot route if that is all. It says what would do.
type tooManySlots struct{ slots int }

func (e tooManySlots) Error() string {
	return fmt.Sprintf("%d slots are more than the %[2]d that the kernel's program can tell apart; use --workers %[2]d or fewer", e.slots, reuseport.MaxSlots)
}

// maxDefaultWorkers is the most slots that there are by default: what both routes can do.
const maxDefaultWorkers = reuseport.MaxSlots

// defaultWorkers is how many slots there are if nobody says, and where the number comes from. The Go
// runtime knows of CPU affinity (NumCPU) and of a cgroup's quota, which it rounds up, to 2 at least
// (GOMAXPROCS).
func defaultWorkers() (n int, origin string) {
	n = runtime.GOMAXPROCS(0)
	switch {
	case os.Getenv("GOMAXPROCS") == strconv.Itoa(n):
		origin = "GOMAXPROCS"
	case n < runtime.NumCPU():
		origin = "the cgroup's CPU quota"
	default:
		origin = "number of CPUs"
	}
	if n > maxDefaultWorkers {
		n, origin = maxDefaultWorkers, fmt.Sprintf("%s (%d), at most %d", origin, n, maxDefaultWorkers)
	}
	return n, "default: " + origin
}

// chooseLink decides by the command.
func (p plan) chooseLink(config *master.Config, cannot error) error {
	command, setting := config.Supervisor.Command, config.Supervisor.Setting
	f := facts{program: programs.SeeIn(setting.Directory, command), filter: checkFilter}
	f.mailbox = func() bool { return namesMailbox(setting, command) || namesMailbox(setting, f.program.Args) }
	switch {
	case p.route == routeMaster:
		f.route = errors.New("with --route master the master hands connections off")
	case cannot != nil:
		f.route = fmt.Errorf("the kernel cannot route: %w", cannot) // tooManySlots among others
	case config.Balancer.WhenDown == routing.Next:
		f.route = errors.New("with --when-down next connections are handed off")
	}
	c, err := f.choose()
	if err != nil {
		return err
	}
	config.Link = c.link
	config.Logger.Info("worker link chosen", "link", c.link.String(), "reason", c.why, "change_with", "--worker-link")
	if f.program.Kind == programs.Node {
		chooseDialect(config, f.program.Script)
		if names := nodeipc.NamesMaster(f.program.Script); names != "" {
			config.Logger.Warn("the script runs workers of its own: as a worker it has none, and its clients are refused", "script", f.program.Script, "because", "it calls "+names,
				"remedy", "run the script of its workers, which handfast then starts in its place; or say --worker-link any, and each slot has a master and its workers")
		}
	}
	return nil
}

// chooseDialect looks for the module that Node workers are written for.
func chooseDialect(config *master.Config, script string) {
	project := nodeipc.FindProject(script)
	config.Dialect = project.Dialect()
	module := project.Silent()
	if module == "" {
		return
	}
	if config.ReadyWhen == nodeipc.ReadyAuto {
		config.ReadyWhen = nodeipc.ReadyStarted
	}
	config.Logger.Info("workers are written for a sticky balancer: unless they listen they get connections by its message",
		"module", module, "because", "the script names it and "+project.Path+" depends on it", "otherwise", "--worker-link node --ready-when listening")
}

// warnStarter says that a command for which --worker-link node was asked does not get the channel.
func warnStarter(config *master.Config) {
	program := programs.SeeIn(config.Supervisor.Setting.Directory, config.Supervisor.Command)
	if slices.Contains([]programs.Kind{programs.NodeStarter, programs.NodeNothing}, program.Kind) {
		config.Logger.Warn("workers will not hear Node's channel", "reason", program.Why, "remedy", facts{program: program}.instead()+", or --worker-link any")
	}
}
