// Package early catches signals that end a program, from the first moment on in which that is possible, in a program
// that another one has made way for. It imports next to nothing, so that it is initialised among the first
// packages: the order is that of import paths, and a package comes after those that it imports (Go specification,
// "Program initialization").
package early

import (
	"os"
	"os/signal"
	"syscall"
)

// Variable is in the environment of such a program. Package reexec says what it means.
const Variable = "HANDFAST_BUNDLE"

// Signals gets SIGHUP, SIGINT and SIGTERM from the start; nil in other programs.
var Signals = catch()

func catch() chan os.Signal {
	if _, ok := syscall.Getenv(Variable); !ok {
		return nil
	}
	const capacity = 64
	c := make(chan os.Signal, capacity)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	return c
}

// Caught returns what has come to Signals and was not received yet.
func Caught() (all []syscall.Signal) {
	for {
		select {
		case sig := <-Signals:
			all = append(all, sig.(syscall.Signal))
		default:
			return all
		}
	}
}
