package reexec

import "sync"

// Gate is to execve what syscall.ForkLock is to fork. An upgrade closes it (Lock) when the program ends, which then
// happens between any two instructions. So code that takes something out of the kernel that ends with this program (a
// connection that was accepted, a message that was received) passes it (RLock) before, and leaves it (RUnlock) when
// that is where a Bundle finds it, or is back in the kernel (handed off, answered). It must not be held while
// waiting, and not twice by the same goroutine, since an upgrade may be waiting in between.
//
// Functions that move a connection from one owner to another call MustHold. In a build with the race detector a Gate
// knows which goroutines hold it, and a goroutine that breaks one of these rules panics. In others it is a
// sync.RWMutex, and MustHold is nothing.
type Gate struct {
	mu      sync.RWMutex
	holders holders
}

// Lock is the Gate of this process.
var Lock Gate

// RLock passes the gate. It waits while an upgrade has it closed.
func (g *Gate) RLock() {
	g.holders.enters()
	g.mu.RLock()
	g.holders.entered()
}

// RUnlock leaves the gate.
func (g *Gate) RUnlock() {
	g.holders.leaves()
	g.mu.RUnlock()
}

// Lock closes the gate, when all who have passed it have left.
func (g *Gate) Lock() {
	g.holders.enters()
	g.mu.Lock()
	g.holders.entered()
}

// Unlock opens the gate.
func (g *Gate) Unlock() {
	g.holders.leaves()
	g.mu.Unlock()
}

// MustHold says that the calling goroutine has passed the gate, or closed it.
func (g *Gate) MustHold() { g.holders.check() }

// RLocker returns the gate for code that is given what to lock while it receives something.
func (g *Gate) RLocker() sync.Locker { return (*passing)(g) }

type passing Gate

func (p *passing) Lock()   { (*Gate)(p).RLock() }
func (p *passing) Unlock() { (*Gate)(p).RUnlock() }
