package reexec

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is the kernel's struct sigaction, with room to spare. The first word is the handler.
type sigaction [16]uintptr

// Handlers that are none.
const (
	sigDfl = 0
	sigIgn = 1
)

// Ignored asks the kernel whether a signal is ignored.
func Ignored(sig syscall.Signal) bool {
	var action sigaction
	rtSigaction(sig, nil, &action)
	return action[0] == sigIgn
}

// ResetSignal gives a signal its default action, behind the back of os/signal.
func ResetSignal(sig syscall.Signal) { rtSigaction(sig, &sigaction{sigDfl}, nil) }

// ignore has a signal ignored, behind the back of os/signal, until undo.
func ignore(sig syscall.Signal) (undo func()) {
	now, before := sigaction{sigIgn}, sigaction{}
	rtSigaction(sig, &now, &before)
	return func() { rtSigaction(sig, &before, nil) }
}

// rtSigaction is rt_sigaction(2).
func rtSigaction(sig syscall.Signal, set, old *sigaction) {
	const maskSize = 8
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), maskSize, 0, 0)
}
