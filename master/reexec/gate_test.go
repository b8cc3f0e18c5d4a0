package reexec

import (
	"strings"
	"sync"
	"testing"
)

// TestGate: under the race detector a goroutine that breaks a rule of the gate panics, and none that keeps them does.
func TestGate(t *testing.T) {
	var g Gate
	panics := func(f func()) (why string) {
		defer func() { why, _ = recover().(string) }()
		f()
		return ""
	}
	g.RLock()
	g.MustHold()
	var others sync.WaitGroup
	others.Go(func() {
		if why := panics(g.MustHold); raceEnabled != strings.Contains(why, "is not held") {
			t.Errorf("something moved in another goroutine: %q", why)
		}
		g.RLock()
		defer g.RUnlock()
	})
	others.Wait()
	if raceEnabled { // the others would wait, or corrupt a sync.RWMutex
		if why := panics(g.RLock); !strings.Contains(why, "holds the gate already") {
			t.Errorf("it passed twice: %q", why)
		}
		others.Go(func() {
			if why := panics(g.RUnlock); !strings.Contains(why, "does not hold it") {
				t.Errorf("another goroutine left: %q", why)
			}
		})
		others.Wait()
	}
	g.RUnlock()
	g.Lock()
	g.MustHold()
	g.Unlock()
	locker := g.RLocker()
	locker.Lock()
	g.MustHold()
	locker.Unlock()
	if why := panics(g.MustHold); raceEnabled != (why != "") {
		t.Errorf("afterwards: %q", why)
	}
}

// TestGateAllocates: it is on the straight line.
func TestGateAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("it is no sync.RWMutex then")
	}
	var g Gate
	if n := testing.AllocsPerRun(100, func() { g.RLock(); g.MustHold(); g.RUnlock() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
