// Package asuser does things that workers ask of the master with their rights instead of the master's.
//
// A worker that runs as another user must not gain root's rights because root does something for it. It is not
// enough to look beforehand whether the worker might do that itself, since a path can lead elsewhere a moment
// later. So the kernel decides: a thread that has the worker's user, groups and capabilities does it, and ends
// afterwards.
package asuser

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errOther: the thread has not become the user that it should be. That would be a fault of the kernel's, or of ours.
var errOther = errors.New("asuser: the thread has kept its user")

// Do calls f with the rights of a process that is started as a user, and returns f's error. f must not leave it to
// another goroutine. Only root can become another user. nil: a process that is started as the same user; its rights
// differ if this process has capabilities that its children do not inherit (setcap, man 7 capabilities).
func Do(as *syscall.Credential, f func() error) error {
	if as == nil && os.Geteuid() == 0 {
		return f()
	}
	return ownThread(func() error {
		if err := become(as); err != nil {
			return err
		}
		return f()
	})
}

// ownThread runs f in a thread that ends with it.
func ownThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		// A goroutine that ends without having unlocked its thread ends that, too (runtime.LockOSThread), and the
		// runtime starts no other thread from it.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			result <- f()
			return
		}
		// The main thread cannot end. While we have it the next one will be another.
		result <- ownThread(f)
		runtime.UnlockOSThread()
	}()
	return <-result
}

// become changes the calling thread alone: the system calls are raw, since package syscall's change all threads. The
// real and the saved user stay, so that no other user can send the thread signals.
func become(as *syscall.Credential) error {
	const same = ^uintptr(0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("asuser: %w", os.NewSyscallError("capget", err))
	}
	if as != nil {
		var groups unsafe.Pointer
		if len(as.Groups) > 0 {
			groups = unsafe.Pointer(&as.Groups[0])
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(as.Groups)), uintptr(groups), 0); errno != 0 {
			return fmt.Errorf("asuser: %w", os.NewSyscallError("setgroups", errno))
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, same, uintptr(as.Gid), same); errno != 0 {
			return fmt.Errorf("asuser: %w", os.NewSyscallError("setresgid", errno))
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(as.Uid), same); errno != 0 {
			return fmt.Errorf("asuser: %w", os.NewSyscallError("setresuid", errno))
		}
		if os.Geteuid() != int(as.Uid) || os.Getegid() != int(as.Gid) {
			return errOther
		}
	}
	if os.Geteuid() == 0 {
		return nil // it keeps root's
	}
	inherits := [2]uint32{}
	for n := range unix.CAP_LAST_CAP + 1 {
		// A process that changes its user loses them.
		if set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(n), 0, 0); as == nil && err == nil && set == 1 {
			inherits[n/32] |= 1 << (n % 32)
		}
	}
	for i := range has {
		has[i].Permitted &= inherits[i]
		has[i].Effective = has[i].Permitted
	}
	if err := unix.Capset(&header, &has[0]); err != nil {
		return fmt.Errorf("asuser: %w", os.NewSyscallError("capset", err))
	}
	return nil
}
