//go:build linux && (amd64 || arm64)

package reexec

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// recordTo is the pipe that recorder writes to.
//
//lint:ignore U1000 by assembly
var recordTo int32

// recorder is a signal handler that writes the signal's number, as a byte, to a pipe, and needs nothing of the Go
// runtime: what that takes from the kernel in the last moment ends with this program.
//
//lint:ignore U1000 by assembly
func recorder()

// restorer returns from a signal handler, where the kernel wants to be told how (sigreturn(2)).
//
//lint:ignore U1000 by assembly
func restorer()

// addresses returns theirs.
func addresses() (handler, restore uintptr)

// record has signals written to a pipe instead of being caught, until undo.
func record(signals []syscall.Signal, pipe int) (undo func()) {
	const (
		saSiginfo  = 0x00000004
		saOnStack  = 0x08000000 // a goroutine's stack is too small
		saRestart  = 0x10000000
		saRestorer = 0x04000000
		all        = ^uintptr(0)
	)
	recordTo = int32(pipe)
	handler, restore := addresses()
	now := sigaction{handler, saSiginfo | saOnStack | saRestart, restore, all}
	if restore != 0 {
		now[1] |= saRestorer
	}
	before := make([]sigaction, len(signals))
	for i, sig := range signals {
		rtSigaction(sig, &now, &before[i])
	}
	return func() {
		for i, sig := range signals {
			rtSigaction(sig, &before[i], nil)
		}
	}
}

// A thread that is sent a signal with this code marks that it has left all handlers before: in each of them all
// signals are blocked. recorder, in assembly, adds isMark to the signal.
const (
	codeMark = -42
	isMark   = 0x80
)

// recorded returns what is in such a pipe, and how many marks.
func recorded(pipe int) (signals []syscall.Signal, marks int) {
	var buffer [512]byte
	for {
		n, err := unix.Read(pipe, buffer[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return signals, marks
		}
		for _, sig := range buffer[:n] {
			if sig&isMark != 0 {
				marks++
			} else {
				signals = append(signals, syscall.Signal(sig))
			}
		}
	}
}

// markThreads has the other threads of this process write a mark, and returns how many will. The signal is one that no
// thread of a Go program blocks, and is recorded.
func markThreads(sig syscall.Signal) (threads int) {
	entries, _ := os.ReadDir("/proc/self/task")
	info := [32]int32{int32(sig), 0, codeMark} // struct siginfo
	for _, entry := range entries {
		tid, err := strconv.Atoi(entry.Name())
		if err != nil || tid == unix.Gettid() {
			continue
		}
		_, _, errno := unix.Syscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(unix.Getpid()), uintptr(tid), uintptr(sig), uintptr(unsafe.Pointer(&info)), 0, 0)
		if errno == 0 {
			threads++
		}
	}
	return threads
}
