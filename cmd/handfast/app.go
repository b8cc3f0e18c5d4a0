package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/supervisor"
)

// Exit statuses.
const (
	exitOK      = 0 // stopped as asked, or printed what was asked for
	exitFailure = 1 // could not start or go on, or was stopped by force
	exitUsage   = 2 // the command line or the environment makes no sense
	exitGaveUp  = 3 // workers kept dying young (--max-restarts)
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
	if len(args) > 2 && args[1] == "help" && (len(args) > 3 || app.Command(args[2]) == nil) {
		return exitStatus(stderr, explain(app, stdout, args[2:]))
	}
	return exitStatus(stderr, app.RunContext(ctx, arrange(app, args)))
}

// explain is help about something that is no command.
func explain(app *cli.App, stdout io.Writer, words []string) error {
	if len(words) == 1 {
		if known, err := writeTopic(stdout, words[0]); known {
			return err
		}
	}
	if known, err := writeTrouble(stdout, words); known {
		return err
	}
	return helpMistake(commandWords(app), strings.Join(words, " "))
}

// exitStatus says what is wrong, and returns the exit status.
func exitStatus(stderr io.Writer, err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		say(stderr, "handfast: %s\nTry 'handfast help'.\n", strings.ReplaceAll(logging.WithoutPackages(err.Error()), "\n", "\nhandfast: "))
		return exitUsage
	case errors.Is(err, supervisor.ErrGaveUp):
		say(stderr, "handfast: %s\n", logging.WithoutPackages(err.Error()))
		return exitGaveUp
	default:
		text := logging.WithoutPackages(err.Error())
		say(stderr, "handfast: %s\n", text)
		if name := troubleIn(text); name != "" {
			say(stderr, "Try 'handfast help %s'.\n", name)
		}
		return exitFailure
	}
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
		UsageText: "handfast run [flags] -- COMMAND [ARG...]\nhandfast status|reload|upgrade|stop [flags]\nhandfast list [--json]\nhandfast scale [flags] N\nhandfast drain [flags] SLOT|--now\n" +
			"handfast slot [flags] ADDRESS\nhandfast proxy-config [flags] PROXY\nhandfast check [flags] [-- COMMAND [ARG...]]",
		Description: "handfast run starts several copies of your server on one port: the workers. Each client\n" +
			"always gets the same worker, over its own connection: no proxy is in between. A worker fills\n" +
			"a slot, which has a number. When it is replaced, the next one gets its slot and its clients.\n" +
			"The master is the process handfast run itself.",
		Version:  version(),
		Writer:   stdout,
		Metadata: map[string]any{},

		SliceFlagSeparator: "\n", // a comma may be in a value; see values.list
		ErrWriter:          stderr,
		OnUsageError:       usage,
		// Errors are reported by run, which tells usage errors from others.
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			runCommand(stderr), statusCommand(), listCommand(), reloadCommand(), scaleCommand(), drainCommand(), upgradeCommand(), stopCommand(),
			slotCommand(), proxyConfigCommand(), checkCommand(stderr), manCommand(), completionCommand(), versionCommand(),
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

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print which handfast this is",
		Description: "The master that runs may be another one: 'handfast status' tells.",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprintln(c.App.Writer, "handfast", c.App.Version)
			return err
		},
	}
}

// release is the version that cmd/dist has built, and empty in other programs.
var release string

// version is the release's, or what the Go toolchain knows of this build.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// arrange returns the words of a command line in the order that the library wants, and has the
// application remember which flags there are.
func arrange(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	command := app.Command(args[1])
	if command == nil || command.Name == "help" {
		return args
	}
	line := readCommandLine(command, args[2:])
	app.Metadata[metaTyped] = line.typed(command)
	return slices.Concat(args[:2], line.ordered())
}

// metaTyped is where the application keeps the flags of its command line: the library does not tell that
// a value is from there, and not from the environment.
const metaTyped = "typed"

// typed returns the flags of a command that are on the command line.
func typed(c *cli.Context) map[string]bool {
	found, _ := c.App.Metadata[metaTyped].(map[string]bool)
	return found
}
