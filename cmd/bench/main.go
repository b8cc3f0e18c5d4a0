// Command bench compares handfast with what else could stand before the same
// workers: side by side on one machine, in rounds that take turns.
//
// One measurement, file by file:
//
//  1. bench.go goes through works, rounds and peers, and starts each peer afresh.
//  2. peers.go is the table of peers. It says how one is started, proxies.go how proxies
//     are, node.go those with Node workers; stage.go holds its processes.
//  3. worker.go is the server behind every peer: this program, started again. Behind
//     those of node.go it is node/server.js.
//  4. works.go is the table of works: what is done to a peer and which figures come of
//     it. How is in short.go, websocket.go, download.go, held.go and reload.go.
//  5. load.go opens the connections; usage.go reads processor time and memory.
//  6. table.go makes a table of all rounds, plot.go a plot, report.go the page around
//     them; progress.go says meanwhile how much is left.
//
// To add a peer or a work, add an entry to the table in peers.go or works.go; a
// work names the peers that it compares.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func main() {
	if mode := os.Getenv(envWorker); mode != "" {
		serve(mode)
		return
	}
	// Peers are told when the thread that started them ends (PR_SET_PDEATHSIG,
	// man 2 prctl), so this one has to last.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	status := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// settings are the flags.
type settings struct {
	rounds      int
	duration    time.Duration // of the load in one round
	workers     int
	concurrency int // connections in flight
	clients     int // source addresses
	held        int // connections held open
	download    int // MiB
	peers       []peer
	works       []work
	output      string // a Markdown file; empty: none
}

// errUsage: the command line makes no sense.
var errUsage = errors.New("wrong usage")

// run is the whole command: 0 all peers were measured, 1 one failed, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).RunContext(ctx, args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	default:
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
}

// description is part of the help.
const description = `All works together take about 25 minutes. To do less, choose some, and fewer rounds:

	bench -works short -rounds 3                              short-1, short-4 and short-16
	bench -works websocket -peers reuseport,handfast,nginx    two of them and nginx-stream, nginx-http

Interrupted, it reports what it has measured so far.`

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:            "bench",
		Usage:           "compare handfast with other balancers before the same workers",
		Description:     description,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return fmt.Errorf("%w: %w", errUsage, err)
		},
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "`NUMBER` of times that each peer is measured"},
			&cli.DurationFlag{Name: "duration", Value: 1500 * time.Millisecond, Usage: "of the load in one round"},
			&cli.IntFlag{Name: "workers", Value: 2, Usage: "`NUMBER` of worker processes behind each peer, where a work has none of its own"},
			&cli.IntFlag{Name: "concurrency", Value: 32, Usage: "`NUMBER` of connections in flight"},
			&cli.IntFlag{Name: "clients", Value: 1000, Usage: "`NUMBER` of source addresses, 127.1.0.0 and up"},
			&cli.IntFlag{Name: "held", Value: 10_000, Usage: "`NUMBER` of connections that are held open; proxies get as many as the limit of open files allows"},
			&cli.IntFlag{Name: "download", Value: 1024, Usage: "`MIB` of the large download"},
			&cli.StringFlag{Name: "peers", Value: strings.Join(names(peers), ","), Usage: "`NAMES` of what to measure"},
			&cli.StringFlag{Name: "works", Value: strings.Join(names(works), ","), Usage: "`NAMES` of what to do to them"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the results to `FILE` too, as Markdown, with a plot of each work beside it"},
		},
		Action: func(c *cli.Context) error {
			set, err := settingsFrom(c)
			if err != nil {
				return err
			}
			return bench(c.Context, set, stdout, stderr)
		},
	}
}

func settingsFrom(c *cli.Context) (settings, error) {
	set := settings{
		rounds:      c.Int("rounds"),
		duration:    c.Duration("duration"),
		workers:     c.Int("workers"),
		concurrency: c.Int("concurrency"),
		clients:     c.Int("clients"),
		held:        c.Int("held"),
		download:    c.Int("download"),
		output:      c.String("output"),
	}
	switch {
	case c.NArg() > 0:
		return set, fmt.Errorf("%w: no arguments expected, got %q", errUsage, c.Args().First())
	case min(set.rounds, set.workers, set.concurrency, set.clients, set.held, set.download) < 1, set.duration <= 0:
		return set, fmt.Errorf("%w: numbers must be 1 or more", errUsage)
	case set.clients > maxClients:
		return set, fmt.Errorf("%w: --clients %d: want at most %d", errUsage, set.clients, maxClients)
	}
	var err, err2 error
	set.peers, err = choose(peers, c.String("peers"))
	set.works, err2 = choose(works, c.String("works"))
	if err := errors.Join(err, err2); err != nil {
		return set, err
	}
	return set, set.match()
}

// match leaves out works that compare none of the peers, and peers that none of
// the works compares.
func (set *settings) match() error {
	set.works = slices.DeleteFunc(set.works, func(w work) bool { return len(w.rows(set.peers)) == 0 })
	set.peers = slices.DeleteFunc(set.peers, func(p peer) bool {
		return !slices.ContainsFunc(set.works, func(w work) bool { return slices.Contains(w.peers, p.name) })
	})
	if len(set.works) == 0 {
		return fmt.Errorf("%w: the works compare none of the peers", errUsage)
	}
	return nil
}

// named is an entry of a table.
type named interface{ String() string }

func names[T named](table []T) []string {
	var list []string
	for _, entry := range table {
		list = append(list, entry.String())
	}
	return list
}

// choose returns the entries that a comma-separated list names, in its order. A
// name that no entry has stands for all that begin with it and a hyphen.
func choose[T named](table []T, list string) ([]T, error) {
	var chosen []T
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		some := filter(table, func(entry T) bool { return entry.String() == name })
		if len(some) == 0 {
			some = filter(table, func(entry T) bool { return strings.HasPrefix(entry.String(), name+"-") })
		}
		if len(some) == 0 {
			return nil, fmt.Errorf("%w: no %q; there are %s", errUsage, name, strings.Join(names(table), ", "))
		}
		chosen = append(chosen, some...)
	}
	return chosen, nil
}

func filter[T any](table []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(table), func(entry T) bool { return !keep(entry) })
}
