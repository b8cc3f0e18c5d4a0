// Command chaos runs handfast with real workers and real clients, and disturbs it: workers and the master are killed and stopped, reloaded, replaced, scaled and
// upgraded; the disk is full, memory is short. A seed says what is done, and when. Clients note what they get, and package history decides
// whether that can be.
//
//	go run ./cmd/chaos                                      a new seed, for thirty seconds
//	go run ./cmd/chaos -seed 7 -for 10m kernel/native       seed 7, by the kernel's route alone
//	go run ./cmd/chaos -check FILE                          what was kept of a trial that failed, once more
//
// A seed makes the same plan each time. What becomes of it differs, since processes, the network and the machine have their own time.
//
// As root all of that is done. Else what cannot be done here is named, and left out. Memory is made short by a cgroup, and the disk is a small file
// system in a mount namespace. The clock is set (-set-clock) only where the machine is there for this trial: nothing less than the machine's own clock
// can be set, since a time namespace has none of it.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// variants are routes and links under which handfast is tried unless some are named, and further ones can be, which need Node.
var (
	variants = []string{"kernel/native", "master/native", "kernel/any", "master/any"}
	further  = []string{"kernel/node", "master/node"}
)

// nodeWorker is the worker of links to Node.
//
//go:embed worker.js
var nodeWorker []byte

// settings are what all trials of a run have in common.
type settings struct {
	seed     uint64
	length   time.Duration
	clients  int
	out      string // where what failed is kept
	dir      string // of this run
	handfast string
	worker   string
	node     string // the same for Node
	setClock bool
	verbose  bool
}

func main() {
	if inside() {
		os.Exit(run())
	}
	os.Exit(enter())
}

func run() int {
	var s settings
	flag.Uint64Var(&s.seed, "seed", 0, "what says what is done, and when; 0: a new one")
	flag.DurationVar(&s.length, "for", 30*time.Second, "how long, of which the last eight seconds are calm")
	flag.IntVar(&s.clients, "clients", 24, "number of clients of each variant")
	flag.StringVar(&s.out, "o", os.TempDir(), "where histories and logs are kept of what failed")
	flag.StringVar(&s.handfast, "handfast", "", "the program that is tried (default: built from here)")
	flag.StringVar(&s.worker, "worker", "", "its worker, as testdata/worker (default: built from here)")
	flag.BoolVar(&s.setClock, "set-clock", false, "set the machine's clock again and again, and right in the end: in a virtual machine of its own only")
	flag.BoolVar(&s.verbose, "v", false, "tell what is done")
	check := flag.String("check", "", "a history that was kept, to be checked")
	flag.Parse()
	if *check != "" {
		return checkAgain(*check)
	}
	if s.seed == 0 {
		s.seed = rand.Uint64N(1 << 32)
	}
	asked := variants
	if flag.NArg() > 0 {
		asked = flag.Args()
	}
	for _, v := range asked {
		if all := slices.Concat(variants, further); !slices.Contains(all, v) {
			fmt.Fprintf(os.Stderr, "chaos: %s: want one of %s\n", v, strings.Join(all, ", "))
			return 2
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	defer s.cleanUp()
	return s.runAll(ctx, asked)
}

// runAll runs the trials side by side.
func (s *settings) runAll(ctx context.Context, asked []string) (status int) {
	fmt.Printf("seed %d, for %v, %d clients of each of %s\n", s.seed, s.length, s.clients, strings.Join(asked, ", "))
	var wg sync.WaitGroup
	reports := make([]report, len(asked))
	for i, v := range asked {
		wg.Go(func() { reports[i] = s.try(ctx, v) })
	}
	wg.Wait()
	for i, r := range reports {
		fmt.Printf("%-14s %s\n", asked[i], r.summary)
		for _, text := range r.failures {
			fmt.Printf("    %s\n", text)
		}
		if len(r.failures) > 0 {
			status = 1
			fmt.Printf("    kept: %s\n    again: make chaos SEED=%d CHAOS=%v VARIANTS=%s\n    checked again: go run ./cmd/chaos -check %s\n",
				r.kept, s.seed, s.length, asked[i], filepath.Join(r.kept, historyFile))
		}
	}
	return status
}

// prepare builds what is tried.
func (s *settings) prepare(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "chaos"); err != nil {
		return err
	}
	for _, b := range []struct {
		program *string
		pkg     string
	}{{&s.handfast, "./cmd/handfast"}, {&s.worker, "./cmd/handfast/testdata/worker"}} {
		if *b.program != "" {
			if *b.program, err = filepath.Abs(*b.program); err != nil {
				return err
			}
			continue
		}
		*b.program = filepath.Join(s.dir, filepath.Base(b.pkg))
		cmd := exec.CommandContext(ctx, "go", "build", "-o", *b.program, b.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", b.pkg, err, out)
		}
	}
	s.node = filepath.Join(s.dir, "worker.js")
	return os.WriteFile(s.node, nodeWorker, 0o600)
}

func (s *settings) cleanUp() { os.RemoveAll(s.dir) }

// historyFile and logFile are what is kept.
const (
	historyFile = "history.jsonl"
	logFile     = "handfast.log"
)

// report is what became of a trial.
type report struct {
	summary  string
	failures []string
	kept     string // folder
}

// mostFaults is how many faults of one rule are told: one mistake is seen by all clients.
const mostFaults = 5

// tell returns the faults as text, the first few of each rule.
func tell(faults []history.Fault) (lines []string) {
	of := make(map[history.Rule]int)
	for _, f := range faults {
		if of[f.Rule]++; of[f.Rule] <= mostFaults {
			lines = append(lines, f.String())
		}
	}
	for rule, n := range of {
		if n > mostFaults {
			lines = append(lines, fmt.Sprintf("%s: %d faults in all", rule, n))
		}
	}
	return lines
}

func checkAgain(file string) int {
	f, err := os.Open(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	defer f.Close()
	h, err := history.Read(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	faults := history.Check(h)
	for _, line := range tell(faults) {
		fmt.Println(line)
	}
	fmt.Printf("%s: %s, %d faults\n", file, summary(h), len(faults))
	if len(faults) > 0 {
		return 1
	}
	return 0
}
