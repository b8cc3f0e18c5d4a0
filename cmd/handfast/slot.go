package main

import (
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/hash"
)

// slotCommand prints where a client belongs.
func slotCommand() *cli.Command {
	return &cli.Command{
		Name:      "slot",
		Usage:     "print the slot of a client",
		ArgsUsage: "ADDRESS",
		Description: "Computes what a master with the same --workers, --hash-seed, prefix lengths and\n" +
			"--key computes, on any machine. With --key header:NAME, ADDRESS is the header's\n" +
			"value.",
		Flags: append([]cli.Flag{workersFlag()}, hashFlags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("slot: want one ADDRESS, got %d arguments", c.NArg())
			}
			v := values{Context: c}
			workers, key := v.workers(), v.keyOf(c.Args().First())
			if v.err != nil {
				return v.err
			}
			_, err := fmt.Fprintln(c.App.Writer, key.Slot(workers))
			return err
		},
	}
}

// keyOf returns the key of a client: of its address, or of the value of the header that
// is the key.
func (v *values) keyOf(client string) hash.Key {
	config := v.hashing()
	if v.key() != "" {
		return config.Text(client)
	}
	addr, err := netip.ParseAddr(client)
	if err != nil {
		v.fail("slot: %q is not an IP address", client)
	}
	return config.Key(addr)
}
