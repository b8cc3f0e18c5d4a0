// Package nthcall makes system calls of a running program fail, as the kernel might.
//
// The program is the real one, and knows nothing of it: a tracer, which is a process of its own, stops it at each system call
// (man 2 ptrace), and has those fail that a Rule tells. Its children are let go when they become another program.
//
//	rule.go    which calls fail, and what is known of those that did
//	tracer.go  the test's side: starts a tracer, gives it a rule, hears of what it did
//	ptrace.go  the tracer (ptrace_other.go: there is none)
//	stack.go   who made a call
package nthcall

import (
	"slices"
	"strings"
	"syscall"
)

// Rule says which calls fail.
type Rule struct {
	Call  uint64        // its number
	Errno syscall.Errno // what it says
	Skip  int           // so many of those that match are let be
	Count int           // and then so many fail; -1: all
	Done  bool          // the call does what it is to do all the same, as close does (man 2 close)

	// Mask is zero, or the argument of index Arg is Value, as far as Mask goes.
	Arg         int
	Mask, Value uint64

	// In is the name of a function that has led to the call, or part of it. OnlyOurs: some function of this module has, and it
	// is none of those by which Go's runtime makes its poller, which ends the program if they fail.
	In       string
	OnlyOurs bool

	// Children has calls match of processes that the program has started, and that are not another program yet, and none of
	// its own.
	Children bool
}

// Hit is a call that has failed.
type Hit struct {
	Stack []string // the functions that have led to it, innermost first, without those of package runtime
}

const module = "github.com/handfast/handfast/"

// At returns the innermost function of this module, or else of all.
func (h Hit) At() string {
	if i := slices.IndexFunc(h.Stack, isOurs); i >= 0 {
		return strings.TrimPrefix(h.Stack[i], module)
	}
	return strings.Join(h.Stack[:min(1, len(h.Stack))], "")
}

func isOurs(function string) bool { return strings.HasPrefix(function, module) }

// matches tells whether a call with this stack is one of the rule's.
func (r *Rule) matches(stack []string) bool {
	if r.OnlyOurs && (!slices.ContainsFunc(stack, isOurs) || slices.Contains(stack, "internal/poll.runtime_pollServerInit")) {
		return false
	}
	return r.In == "" || slices.ContainsFunc(stack, func(f string) bool { return strings.Contains(f, r.In) })
}
