package main

import (
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"
)

// slotCommand prints where a client belongs.
func slotCommand() *cli.Command {
	return &cli.Command{
		Name:      "slot",
		Usage:     "print the slot of a client's address",
		ArgsUsage: "ADDRESS",
		Description: "Computes what a master with the same --workers, --hash-seed and prefix lengths\n" +
			"computes, on any machine.",
		Flags: append([]cli.Flag{workersFlag()}, hashFlags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("slot: want one ADDRESS, got %d arguments", c.NArg())
			}
			addr, err := netip.ParseAddr(c.Args().First())
			if err != nil {
				return usagef("slot: %q is not an IP address", c.Args().First())
			}
			v := values{Context: c}
			workers, config := v.workers(), v.hashing()
			if v.err != nil {
				return v.err
			}
			_, err = fmt.Fprintln(c.App.Writer, config.Key(addr).Slot(workers))
			return err
		},
	}
}
