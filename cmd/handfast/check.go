package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/steer"
	"github.com/handfast/handfast/master/trap"
)

// errLacking: what it is was printed.
var errLacking = errors.New("something is missing on this machine")

// checkCommand is `handfast check`.
func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "try what this machine can do",
		Description: "Tries as this user, for real: --route kernel, and --worker-link any. Says of what is\n" +
			"missing what it needs and what else would work, and then exits with status 1.",
		Action: func(c *cli.Context) error {
			lacking := false
			for _, try := range []struct {
				what string
				do   func() error
			}{
				{"--route kernel", func() error { return tryKernel(c) }},
				{"--worker-link any", trap.Check},
				{"--worker-link any, the master routes", trap.CheckInjection},
			} {
				answer := "ok"
				if err := try.do(); err != nil {
					answer, lacking = err.Error(), true
				}
				fmt.Fprintf(c.App.Writer, "%-36s %s\n", try.what, answer)
			}
			if lacking {
				return errLacking
			}
			return nil
		},
	}
}

// tryKernel opens the largest group of listeners that there may be, on a free port.
func tryKernel(c *cli.Context) error {
	g, err := steer.Listen(c.Context, "127.0.0.1:0", hash.DefaultConfig(), steer.MaxSlots)
	if err != nil {
		return fmt.Errorf("%w; without it use --route master", err)
	}
	return g.Close()
}
