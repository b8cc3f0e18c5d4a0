package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
)

// slotCommand prints where a client belongs.
func slotCommand() *cli.Command {
	return &cli.Command{
		Name:      "slot",
		Usage:     "print the slot of a client",
		ArgsUsage: "ADDRESS",
		Description: "Asks the running master. With --workers, --hash-seed, prefix lengths or --key, or if none\n" +
			"runs, it computes what a master with the same ones computes, on any machine. With\n" +
			"--key header:NAME, ADDRESS is the header's value, and with --session it may be a session's id.",
		Flags: askFlags(append([]cli.Flag{workersFlag()}, hashFlags()...)...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("slot: want one ADDRESS, got %d arguments", c.NArg())
			}
			v := values{Context: c}
			if !v.computes() {
				placed, asked, err := v.place(c.Args().First())
				if err != nil {
					return err
				}
				if asked {
					_, err := fmt.Fprintln(c.App.Writer, placed.Slot)
					return err
				}
			}
			workers, key := v.workers(), v.keyOf(c.Args().First())
			if v.err != nil {
				return v.err
			}
			_, err := fmt.Fprintln(c.App.Writer, key.Slot(workers))
			return err
		},
	}
}

// computes tells whether something is given of what a master would know.
func (v *values) computes() bool {
	return slices.ContainsFunc(append([]cli.Flag{workersFlag()}, hashFlags()...), func(f cli.Flag) bool { return v.IsSet(f.Names()[0]) })
}

// keyOf returns the key of a client, named by what clients are recognised by.
func (v *values) keyOf(client string) hash.Key {
	config := clientip.Config{Hash: v.hashing()}
	config.Rules.Keys = v.keys()
	key, err := config.KeyOf(client)
	if err != nil {
		v.fail("slot: %w", err)
	}
	return key
}
