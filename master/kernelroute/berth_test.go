package kernelroute

import (
	"fmt"
	"testing"
	"time"

	"github.com/handfast/handfast/master/supervisor"
)

// player is a Route with workers that a script starts and ends: of a world, or of the kernel's.
type player interface {
	start(name string, slot int, accepts bool) *Lease
	fill(name string)
	happens(kind supervisor.EventKind, name string)
	Empty(slot int)
	Resize(n int)
	expect(step, want string)
}

// step is what happens, and what then is, for each berth: the slot whose clients come to it, the workers that
// have it, when the master accepts from it, and whether it does (!).
type step struct {
	what string
	do   func(player)
	want string
}

func play(p player, steps []step) {
	for _, s := range steps {
		s.do(p)
		p.expect(s.what, s.want)
	}
}

func start(name string, slot int) func(player) { return func(p player) { p.start(name, slot, true) } }
func fill(name string) func(player)            { return func(p player) { p.fill(name) } }
func exits(name string) func(player) {
	return func(p player) { p.happens(supervisor.WorkerExited, name) }
}
func terminated(name string) func(player) {
	return func(p player) { p.happens(supervisor.WorkerTerminated, name) }
}
func empty(slot int) func(player) { return func(p player) { p.Empty(slot) } }
func resize(n int) func(player)   { return func(p player) { p.Resize(n) } }
func cools(player)                { time.Sleep(coolingTime + 1) }

// scripts are the lives of slots and berths. The first has two slots, the others one.
var scripts = map[string][]step{
	"reload": {
		{"nobody is there", func(player) {}, "0: wait!; 1: wait!"},
		{"a starts", start("a", 0), "0 a: wait!; 1: wait!"},
		{"a fills", fill("a"), "0 a: serves; 1: wait!"},
		{"b starts in 1", start("b", 1), "0 a: serves; 1 b: wait!"},
		{"b fills", fill("b"), "0 a: serves; 1 b: serves"},
		{"a2 starts", start("a2", 0), "0 a: serves; 1 b: serves; - a2: none"},
		{"a2 fills", fill("a2"), "- a: wait!; 1 b: serves; 0 a2: serves"},
		{"b2 starts while a drains", start("b2", 1), "- a: wait!; 1 b: serves; 0 a2: serves; - b2: none"},
		{"b2 fills", fill("b2"), "- a: wait!; - b: wait!; 0 a2: serves; 1 b2: serves"},
		{"a ends", exits("a"), "-: now!; - b: wait!; 0 a2: serves; 1 b2: serves"},
		{"a3 starts where a was", start("a3", 0), "- a3: none; - b: wait!; 0 a2: serves; 1 b2: serves"},
		{"a3 fills", fill("a3"), "0 a3: serves; - b: wait!; - a2: wait!; 1 b2: serves"},
		{"b3 starts while b and b2 live", start("b3", 1), "0 a3: serves; - b: wait!; - a2: wait!; 1 b2: serves; - b3: none"},
	},
	"crash": {
		{"a starts", start("a", 0), "0 a: wait!"},
		{"a fills", fill("a"), "0 a: serves"},
		{"a ends", exits("a"), "0: serves"},
		{"its slot is empty", empty(0), "0: wait!"},
		{"a2 starts with its queue", start("a2", 0), "0 a2: wait!"},
		{"a2 ends before it is ready", exits("a2"), "0: wait!"},
		{"a3 starts with its queue", start("a3", 0), "0 a3: wait!"},
		{"a3 is not ready in time", terminated("a3"), "0 a3: wait!"},
		{"a4 shares with it", start("a4", 0), "0 a3 a4: wait!"},
		{"a4 fills", fill("a4"), "0 a3 a4: serves"},
		{"a3 ends", exits("a3"), "0 a4: serves"},
		{"a4 leaves", empty(0), "0 a4: wait!"},
		{"a5 takes its place", start("a5", 0), "0 a4 a5: wait!"},
	},
	"crash of the new one puts the old one back": {
		{"a starts", start("a", 0), "0 a: wait!"},
		{"a fills", fill("a"), "0 a: serves"},
		{"b starts", start("b", 0), "0 a: serves; - b: none"},
		{"b fills", fill("b"), "- a: wait!; 0 b: serves"},
		{"b ends", exits("b"), "- a: wait!; 0: serves"},
		{"a fills again", fill("a"), "0 a: serves; -: now!"},
		{"c starts", start("c", 0), "0 a: serves; - c: none"},
	},
	"crash during a reload": {
		{"a starts", start("a", 0), "0 a: wait!"},
		{"a fills", fill("a"), "0 a: serves"},
		{"b starts", start("b", 0), "0 a: serves; - b: none"},
		{"a ends", exits("a"), "0: serves; - b: none"},
		{"new clients wait for b", empty(0), "-: now!; 0 b: wait!"},
		{"b ends, too", exits("b"), "-: now!; 0: wait!"},
		{"c starts", start("c", 0), "-: now!; 0 c: wait!"},
		{"c fills", fill("c"), "-: now!; 0 c: serves"},
	},
	"crash while the new one is not wanted any more": {
		{"a starts", start("a", 0), "0 a: wait!"},
		{"a fills", fill("a"), "0 a: serves"},
		{"b starts", start("b", 0), "0 a: serves; - b: none"},
		{"b is dismissed", terminated("b"), "0 a: serves; - b: none"},
		{"a ends", exits("a"), "0: serves; - b: none"},
		{"clients wait where they did", empty(0), "0: wait!; - b: none"},
		{"c starts there", start("c", 0), "0 c: wait!; - b: none"},
		{"b ends, to whom nobody came", exits("b"), "0 c: wait!; -: none"},
	},
	"scale": {
		{"a starts", start("a", 0), "0 a: wait!"},
		{"a fills", fill("a"), "0 a: serves"},
		{"b starts in a slot to be", start("b", 1), "0 a: serves; - b: none"},
		{"there are two slots", resize(2), "0 a: serves; 1 b: wait!"},
		{"b fills", fill("b"), "0 a: serves; 1 b: serves"},
		{"there is one slot", resize(1), "0 a: serves; - b: wait!"},
		{"b ends", exits("b"), "0 a: serves; -: now!"},
		{"a2 does not get what was another's", start("a2", 0), "0 a: serves; -: now!; - a2: none"},
		{"after a while it may", cools, "0 a: serves; -: now!; - a2: none"},
		{"as a3", start("a3", 0), "0 a: serves; - a3: none; - a2: none"},
		{"there are three slots at once", resize(3), "0 a: serves; - a3: none; - a2: none; 1: wait!; 2: wait!"},
	},
}

// TestBerths walks the states of slots and berths.
func TestBerths(t *testing.T) {
	for kind, cfg := range map[string]Config{"taking": taking, "foreign": foreign} {
		for name, steps := range scripts {
			t.Run(fmt.Sprintf("%s/%s", kind, name), func(t *testing.T) {
				inWorld(t, cfg, slotsOf(name), func(w *world) { play(w, steps) })
			})
		}
	}
}

func slotsOf(script string) int {
	if script == "reload" {
		return 2
	}
	return 1
}
