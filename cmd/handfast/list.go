package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/logging"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the handfasts of this user that run on this machine, for root those of all users",
		Description: "One line for each that has its admin socket where --name has it. One that was started\n" +
			"with --admin PATH, or --admin off, is not found. Below the table is who listens and\n" +
			"does not answer within three seconds, and which sockets killed ones have left.\n\n" +
			"Exit status: 0 all that listen have answered, also if there are none; 1 one has not.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "for programs: a list of objects with name, admin, pid, uid, left, error, and status as GET /v1/status has it"}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("list: want no arguments, got %d", c.NArg())
			}
			found := admin.List(c.Context)
			if err := printList(c.App.Writer, found, c.Bool("json")); err != nil {
				return err
			}
			if silent := silentOnes(found); len(silent) > 0 {
				return fmt.Errorf("%d of those that listen have not answered", len(silent))
			}
			return nil
		},
	}
}

func printList(w io.Writer, found []admin.Instance, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(append([]admin.Instance{}, found...)) // none is [], not null
	}
	_, err := io.WriteString(w, listText(found, os.Geteuid()))
	return err
}

// silentOnes are those that listen, and have not answered.
func silentOnes(found []admin.Instance) (silent []admin.Instance) {
	for _, f := range found {
		if f.Status == nil && !f.Left {
			silent = append(silent, f)
		}
	}
	return silent
}

// maxLeft is how many sockets that were left behind are named; --json has all.
const maxLeft = 3

// listText is the list as a user reads it.
func listText(found []admin.Instance, reader int) string {
	rows, others := [][]string{{"NAME", "USER", "PID", "STATE", "WORKERS", "UP", "VERSION", "LISTEN", "ADMIN"}}, false
	var left []string
	for _, f := range found {
		switch s := f.Status; {
		case s != nil:
			others = others || f.UID != nil && *f.UID != reader
			rows = append(rows, []string{f.Name, userName(f.UID), strconv.Itoa(cmp.Or(f.PID, s.PID)), stateInAWord(s), filled(s), age(s, s.Started), s.Version, strings.Join(s.Addresses, " "), f.Admin})
		case f.Left:
			left = append(left, f.Admin)
		}
	}
	text := "no handfast answers here\n"
	if len(rows) > 1 {
		text = tableOf(rows, columnsOf(rows, func(title, cell string) bool { return title != "USER" || others }), 2)
	}
	for _, f := range silentOnes(found) {
		text += f.Name
		if f.PID > 0 {
			text += fmt.Sprintf(", pid %d", f.PID)
		}
		text += fmt.Sprintf(": %s (%s)\n", logging.WithoutPackages(f.Error), f.Admin)
	}
	if n := len(left); n > 0 {
		more := ""
		if n > maxLeft {
			more = fmt.Sprintf(" and %d more", n-maxLeft)
		}
		text += fmt.Sprintf("nobody listens any more at %s%s\n", strings.Join(left[:min(n, maxLeft)], ", "), more)
	}
	return printable(text)
}

// userName is who a user is; empty: that is not known.
func userName(uid *int) string {
	if uid == nil || *uid < 0 {
		return ""
	}
	if u, err := user.LookupId(strconv.Itoa(*uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(*uid)
}

// stateInAWord says how a master is; status says why.
func stateInAWord(s *master.Status) string {
	switch {
	case s.Stopping:
		return "stopping"
	case s.NotReady() != "":
		return "not ready"
	case s.Reload != nil && s.Reload.Ended == nil:
		return "reloading"
	}
	return "ready"
}

// filled is how many slots have a worker, of how many.
func filled(s *master.Status) string {
	n := 0
	for i := range s.Slots {
		if s.Slots[i].Worker != nil {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(s.Slots))
}
