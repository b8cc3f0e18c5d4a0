package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master/logging"
)

// Exit statuses.
const (
	exitOK      = 0 // stopped as asked, or printed what was asked for
	exitFailure = 1 // could not start or go on, or was stopped by force
	exitUsage   = 2 // the command line or the environment makes no sense
)

// usageError is a mistake of the person who typed the command.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usagef makes a usageError.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// parsing is held from the first look at a command line until its command begins: urfave/cli keeps
// its help command and flags in variables, and writes to them.
var parsing sync.Mutex

// run is the whole command; args[0] is the program's name.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	parsing.Lock()
	parsed := sync.OnceFunc(parsing.Unlock)
	defer parsed()
	for _, command := range app.Commands {
		action := command.Action
		command.Action = func(c *cli.Context) error {
			parsed()
			return action(c)
		}
	}
	if last := len(args) - 1; last > 0 && args[last] == completionFlag {
		for _, word := range complete(ctx, app, args[1:last]) {
			fmt.Fprintln(stdout, word)
		}
		return exitOK
	}
	args = operandsLast(app, args)
	app.Metadata[metaArgs] = args
	err := app.RunContext(ctx, args)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		say(stderr, "handfast: %s\nTry 'handfast help'.\n", strings.ReplaceAll(withoutPackages(err.Error()), "\n", "\nhandfast: "))
		return exitUsage
	default:
		say(stderr, "handfast: %s\n", withoutPackages(err.Error()))
		return exitFailure
	}
}

// packagePrefix is what errors of our packages begin with, also where others wrap them.
var packagePrefix = regexp.MustCompile(`(?m)(^|: )(?:acceptinject|activation|admin|asuser|balancer|bindswap|clientip|fdlimit|fdpass|foreign|forwarded|hash|kernelroute|launch|listening|logging|mailbox|master|nodeipc|openconns|output|pgroup|probe|reexec|reuseport|seccomp|sockdiag|supervisor|systemd): `)

// withoutPackages is an error's text without the names of our packages, which mean nothing to people.
func withoutPackages(text string) string {
	for packagePrefix.MatchString(text) {
		text = packagePrefix.ReplaceAllString(text, "$1")
	}
	return text
}

// say writes to standard error, and does not wait for long if nobody reads that.
func say(stderr io.Writer, format string, args ...any) {
	q := logging.NewQueue(stderr)
	defer q.Close()
	fmt.Fprintf(q, format, args...)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	usage := func(c *cli.Context, err error, _ bool) error {
		return usagef("%s: %w", c.Command.Name, flagMistake(c, err))
	}
	app := &cli.App{
		Name:  "handfast",
		Usage: "run a server as several workers, with sticky TCP connections",
		UsageText: "handfast run [flags] -- COMMAND [ARG...]\nhandfast status|reload|upgrade|stop [flags]\nhandfast scale [flags] N\nhandfast drain [flags] SLOT\n" +
			"handfast slot [flags] ADDRESS\nhandfast check [flags] [-- COMMAND [ARG...]]",
		Description: "The master accepts connections, finds the slot that a client's address belongs\n" +
			"to, and hands the open connection to the worker in that slot.",
		Version:  version(),
		Writer:   stdout,
		Metadata: map[string]any{},

		SliceFlagSeparator: "\n", // a comma may be in a value; see values.list
		ErrWriter:          stderr,
		OnUsageError:       usage,
		// Errors are reported by run, which tells usage errors from others.
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			runCommand(stderr), statusCommand(), reloadCommand(), scaleCommand(), drainCommand(), upgradeCommand(), stopCommand(),
			slotCommand(), checkCommand(stderr), manCommand(), completionCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return commandMistake(c.App, c.Args().Slice())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.OnUsageError = usage
		command.CustomHelpTemplate = literal(commandHelp(command))
	}
	app.CustomAppHelpTemplate = literal(appHelp(app))
	return app
}

func commandNames(app *cli.App) string {
	var names []string
	for _, command := range app.Commands {
		if command.Name != "help" {
			names = append(names, command.Name)
		}
	}
	return strings.Join(names, ", ")
}

// version is what the Go toolchain knows of this build.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// operandsLast moves the operands of `handfast slot ADDRESS --workers N` and the like behind the
// flags, where urfave/cli wants them. The arguments of `run` stay as they are: what
// follows the command belongs to it.
func operandsLast(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	command := app.Command(args[1])
	if command == nil || command.Name == "run" {
		return args
	}
	flags, operands := slices.Clone(args[:2]), []string{}
	for rest := args[2:]; len(rest) > 0; rest = rest[1:] {
		switch arg := rest[0]; {
		case arg == "--":
			return slices.Concat(flags, rest[:1], operands, rest[1:])
		case !strings.HasPrefix(arg, "-") || arg == "-":
			operands = append(operands, arg)
		default:
			flags = append(flags, arg)
			if !strings.Contains(arg, "=") && takesValue(command, arg) && len(rest) > 1 {
				rest = rest[1:]
				flags = append(flags, rest[0])
			}
		}
	}
	return append(flags, operands...)
}

// metaArgs is where the application keeps its command line, of which typed reads what the
// library does not tell: that a value is from there, and not from the environment.
const metaArgs = "args"

// typed returns the flags of a command that are on the command line.
func typed(c *cli.Context) map[string]bool {
	found := map[string]bool{}
	args, _ := c.App.Metadata[metaArgs].([]string)
	for rest := args[min(2, len(args)):]; len(rest) > 0; rest = rest[1:] {
		arg := rest[0]
		if !strings.HasPrefix(arg, "-") || arg == "-" || arg == "--" {
			break
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		for _, f := range c.Command.Flags {
			if slices.Contains(f.Names(), name) {
				found[f.Names()[0]] = true
			}
		}
		if !hasValue && takesValue(c.Command, arg) && len(rest) > 1 {
			rest = rest[1:]
		}
	}
	return found
}

// takesValue tells whether a flag as typed is followed by a value.
func takesValue(command *cli.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	for _, f := range command.Flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}
