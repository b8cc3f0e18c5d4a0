//go:build race

package reexec

import (
	"bytes"
	"runtime"
	"strconv"
	"sync"
)

const raceEnabled = true

// holders are the goroutines that hold a gate.
type holders struct {
	mu  sync.Mutex
	ids map[int]struct{}
}

func (h *holders) enters() {
	if h.has(goroutine()) {
		panic("reexec: this goroutine holds the gate already: an upgrade that waits for it in between would wait for ever")
	}
}

func (h *holders) entered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ids == nil {
		h.ids = make(map[int]struct{})
	}
	h.ids[goroutine()] = struct{}{}
}

func (h *holders) leaves() {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := goroutine()
	if _, ok := h.ids[id]; !ok {
		panic("reexec: the gate is left by a goroutine that does not hold it")
	}
	delete(h.ids, id)
}

func (h *holders) check() {
	if !h.has(goroutine()) {
		panic("reexec: something moves although the gate is not held: an upgrade at this moment would lose it")
	}
}

func (h *holders) has(id int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.ids[id]
	return ok
}

// stack is the beginning of a stack trace, which is not made anew each time: the straight line allocates nothing.
var stack struct {
	sync.Mutex
	buffer [64]byte
}

// goroutine returns the number of the calling goroutine, which stands at the beginning of its stack trace.
func goroutine() int {
	stack.Lock()
	defer stack.Unlock()
	_, rest, _ := bytes.Cut(stack.buffer[:runtime.Stack(stack.buffer[:], false)], []byte("goroutine "))
	number, _, _ := bytes.Cut(rest, []byte(" "))
	id, err := strconv.Atoi(string(number))
	if err != nil {
		panic("reexec: a stack trace does not begin with the number of its goroutine")
	}
	return id
}
