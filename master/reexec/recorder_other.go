//go:build !linux || (!amd64 && !arm64)

package reexec

import "syscall"

// record has signals ignored on this architecture: what the Go runtime would take from the kernel in the last moment
// is lost.
func record(signals []syscall.Signal, _ int) (undo func()) {
	var all []func()
	for _, sig := range signals {
		all = append(all, ignore(sig))
	}
	return func() {
		for _, undo := range all {
			undo()
		}
	}
}

func recorded(int) ([]syscall.Signal, int) { return nil, 0 }

func markThreads(syscall.Signal) (threads int) { return 0 }
