package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/steer"
	"github.com/handfast/handfast/master/trap"
)

// errLacking: what it is was printed.
var errLacking = errors.New("something is missing on this machine")

// checkCommand is `handfast check`.
func checkCommand(logs io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "read the configuration, and try what this machine can do",
		ArgsUsage: "[-- COMMAND [ARG...]]",
		Description: "Takes what run takes, and starts nothing. Prints all settings and where each comes\n" +
			"from, in the form of a configuration file; then tries as this user, for real, what\n" +
			"they may need. Says of what is missing or too small what it needs and what else\n" +
			"would work, and then exits with status 1; 2 if the configuration makes no sense.",
		Flags: runFlags(),
		Action: func(c *cli.Context) error {
			a, err := readAll(c, logs)
			if err != nil {
				return err
			}
			if err := writeEffective(c.App.Writer, c, a); err != nil {
				return err
			}
			return tryMachine(c, a)
		},
	}
}

// tryMachine tries what the settings may need, and prints what came of it.
func tryMachine(c *cli.Context, a asked) error {
	fmt.Fprintln(c.App.Writer)
	lacking := false
	try := func(what string, err error) {
		answer := "ok"
		if err != nil {
			answer, lacking = err.Error(), true
		}
		fmt.Fprintf(c.App.Writer, "%-36s %s\n", what, answer)
	}
	try("--route kernel", tryKernel(c))
	try("--worker-link any", checkFilter())
	try("--worker-link any, the master routes", trap.CheckInjection())
	for _, address := range a.addresses() {
		try("--listen "+address, tryAddress(address, a.plan.opens.free))
	}
	try("open files", tryFiles(&a.config))
	try("backlog", tryBacklog())
	if setting := a.config.Supervisor.Setting; setting.Directory != "" || len(setting.EnvFiles) > 0 {
		try("directory, variables", setting.Check(a.config.Supervisor.Rights))
	}
	if command := a.config.Supervisor.Command; len(command) > 0 {
		_, err := a.config.Supervisor.Setting.Find(command[0])
		try("command", err)
	}
	if lacking {
		return errLacking
	}
	return nil
}

// tryKernel opens the largest group of listeners that there may be, on a free port.
func tryKernel(c *cli.Context) error {
	g, err := steer.Listen(c.Context, "127.0.0.1:0", hash.DefaultConfig(), steer.MaxSlots)
	if err != nil {
		return fmt.Errorf("%w; without it use --route master", err)
	}
	return g.Close()
}
