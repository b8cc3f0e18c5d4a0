package fdtest

import (
	"encoding/binary"
	"runtime/trace"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// OrdinaryCalls returns the ordinary system calls that f makes in the goroutine in which it is called: once for each way
// to one, the names of the functions on the stack, the innermost first. A raw call (syscall.RawSyscall) is none, since Go's
// scheduler is not told of it. It is for no parallel test: a process has one execution trace at a time.
func OrdinaryCalls(t testing.TB, f func()) (calls []string) {
	t.Helper()
	var log execution
	Check(t, trace.Start(&log))
	watched(f)
	watched(ordinary)
	trace.Stop()
	understood := false
	for _, stack := range log.systemCalls(t) {
		call := strings.Join(stack, " < ")
		switch {
		case slices.Contains(stack, ours+"ordinary"):
			understood = true
		case slices.Contains(stack, ours+"watched") && !slices.Contains(calls, call):
			calls = append(calls, call)
		}
	}
	if !understood {
		t.Fatal("an ordinary system call is not found in the execution trace: this version of Go writes it in another way")
	}
	return calls
}

// ours is what the names of this package's functions begin with.
const ours = "github.com/handfast/handfast/fdpass/fdtest."

//go:noinline
func watched(f func()) { f() }

//go:noinline
func ordinary() { syscall.Syscall(syscall.SYS_GETPID, 0, 0, 0) }

// execution is an execution trace in the form that Go 1.26 writes (internal/trace/tracev2): a header, and batches, each of
// which has events, stacks, or names.
type execution []byte

// The kinds of batches, events, and entries that we know by name.
const (
	batchBegins    = 1  // generation, thread, time, length
	stackTable     = 2  // of: stack, number, how many frames, and of each: address, name, file, line
	nameTable      = 4  // of: name, number, length
	firstEvent     = 9  // as all that follow
	syscallBegins  = 22 // time, count, stack
	generationEnds = 52
)

// arguments is how many numbers each kind of event has, from firstEvent on.
const arguments = "3314342311334311431232223221222534453345"

// entry is a stack or a name by its number in a generation of the trace.
type entry struct{ generation, number uint64 }

// systemCalls returns the names of the functions on the stack at each ordinary system call, the innermost first.
func (e execution) systemCalls(t testing.TB) (all [][]string) {
	var calls []entry
	stacks, names := map[entry][]entry{}, map[entry]string{}
	e.next(uint64(len("go 1.26 trace\x00\x00\x00")))
	for len(e) > 0 {
		switch kind := e.next(1)[0]; kind {
		case generationEnds:
		case batchBegins:
			generation, _, _ := e.number(), e.number(), e.number()
			switch batch := e.next(e.number()); batch[0] {
			case stackTable:
				batch[1:].readStacks(generation, stacks)
			case nameTable:
				batch[1:].readNames(generation, names)
			default:
				calls = append(calls, batch.readCalls(generation)...)
			}
		default:
			t.Fatalf("a batch of the execution trace is of kind %d", kind)
		}
	}
	for _, call := range calls {
		var functions []string
		for _, name := range stacks[call] {
			functions = append(functions, names[name])
		}
		all = append(all, functions)
	}
	return all
}

func (e execution) readStacks(generation uint64, stacks map[entry][]entry) {
	for len(e) > 0 {
		e.next(1)
		number := e.number()
		stack := make([]entry, e.number())
		for i := range stack {
			e.number()
			stack[i] = entry{generation, e.number()}
			e.number()
			e.number()
		}
		stacks[entry{generation, number}] = stack
	}
}

func (e execution) readNames(generation uint64, names map[entry]string) {
	for len(e) > 0 {
		e.next(1)
		number := e.number()
		names[entry{generation, number}] = string(e.next(e.number()))
	}
}

// readCalls returns the stack of each system call. It stops at what has no event.
func (e execution) readCalls(generation uint64) (calls []entry) {
	for len(e) > 0 {
		kind := int(e.next(1)[0])
		if kind < firstEvent || kind >= firstEvent+len(arguments) {
			return calls
		}
		var last uint64
		for range arguments[kind-firstEvent] - '0' {
			last = e.number()
		}
		if kind == syscallBegins {
			calls = append(calls, entry{generation, last})
		}
	}
	return calls
}

// next takes n bytes off.
func (e *execution) next(n uint64) execution {
	taken := (*e)[:n]
	*e = (*e)[n:]
	return taken
}

// number takes a number off.
func (e *execution) number() uint64 {
	n, size := binary.Uvarint(*e)
	e.next(uint64(max(size, 1)))
	return n
}

// Write implements io.Writer.
func (e *execution) Write(text []byte) (int, error) {
	*e = append(*e, text...)
	return len(text), nil
}
