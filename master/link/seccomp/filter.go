package seccomp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// Offsets in struct seccomp_data (linux/seccomp.h). The low half of an argument comes first
// on the architectures that we know.
const (
	offNumber    = 0
	offArch      = 4
	offSecondArg = 16 + 8
)

// x32 marks the numbers of x86-64's third calling convention, where they are otherwise the
// same for what we look at (asm/unistd.h, __X32_SYSCALL_BIT).
const x32 = 0x40000000

// arch is this architecture in seccomp's words, or 0. The numbers and the layout of
// others would have to be tried: s390x, for one, has all socket calls behind socketcall(2).
var arch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// Call returns the system call's number without the mark of x32.
func (n *Notification) Call() int32 {
	if runtime.GOARCH == "amd64" {
		return n.Number &^ x32
	}
	return n.Number
}

// Filter says which calls a filter asks us about, besides shutdown of the receiving side.
type Filter int

// The filters.
const (
	// Bind asks about bind, which is when a server's socket is exchanged for another, and about
	// listen, since the server's backlog, often tiny, would become that of the slot.
	Bind Filter = iota
	// BindAccept asks about accept and accept4, too, which are answered with connections (Linux 5.19).
	BindAccept
)

// asks returns the numbers of the calls.
func (f Filter) asks() []uint32 {
	if f == BindAccept {
		return []uint32{unix.SYS_BIND, unix.SYS_LISTEN, sock.CallAccept, unix.SYS_ACCEPT4}
	}
	return []uint32{unix.SYS_BIND, unix.SYS_LISTEN}
}

// program is the filter. It asks us about those calls, and about shutdown of the receiving side,
// which would stop the slot's listener for everybody, and moves other slots' clients (it leaves the
// SO_REUSEPORT group). Servers that end their responses politely shut down the sending side, and
// that goes unasked.
//
// io_uring does all of these past any filter, so a worker has none: programs fall back.
// Foreign architectures' calls pass: a 32-bit server cannot be served, but a 32-bit shell may
// start one that can.
func program(calls []uint32) []bpf.Instruction {
	mask := uint32(1<<32 - 1)
	if runtime.GOARCH == "amd64" {
		mask &^= x32
	}
	n := uint8(len(calls))
	all := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: arch, SkipTrue: 7 + n}, // allow
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
	}
	for i, call := range calls {
		all = append(all, bpf.JumpIf{Cond: bpf.JumpEqual, Val: call, SkipTrue: 5 + n - uint8(i)}) // ask
	}
	return append(all,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_IO_URING_SETUP, SkipTrue: 6}, // fail
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SHUTDOWN, SkipTrue: 3},    // allow
		bpf.LoadAbsolute{Off: offSecondArg, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SHUT_WR, SkipTrue: 1}, // allow
		bpf.Jump{Skip: 1}, // ask
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	)
}

// Errors of Install.
var (
	// ErrArchitecture: there is no filter for this architecture.
	ErrArchitecture = errors.New("no seccomp filter for this architecture")
	// ErrNoNewPrivs: the kernel refuses no_new_privs, which a process without CAP_SYS_ADMIN needs.
	ErrNoNewPrivs = errors.New("no_new_privs is refused")
)

// Install puts the filter on the calling thread, and returns the descriptor of its
// notifications, which the caller owns and which is close-on-exec (kernel/seccomp.c).
func (f Filter) Install() (notifications int, err error) {
	if arch == 0 {
		return -1, fmt.Errorf("%w: %w", ErrArchitecture, unix.ENOSYS)
	}
	instructions, err := bpf.Assemble(program(f.asks()))
	if err != nil {
		return -1, fmt.Errorf("installing a seccomp filter: %w", err)
	}
	notifications, err = setFilter(instructions, f.flags())
	if err == unix.EACCES { // no CAP_SYS_ADMIN; a process that has it may still start set-user-ID programs
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, fmt.Errorf("%w: %w", ErrNoNewPrivs, err)
		}
		notifications, err = setFilter(instructions, f.flags())
	}
	if err != nil {
		return -1, fmt.Errorf("installing a seccomp filter: %w", os.NewSyscallError("seccomp", err))
	}
	return notifications, nil
}

// flags returns what the filter is to be installed with: the first that the kernel knows.
func (f Filter) flags() []uintptr {
	// Once we have taken a notification, only a deadly signal may interrupt the call (Linux 5.19).
	// Without that, it is made again: which does no harm unless a connection has been added
	// before the call was answered.
	if f == BindAccept {
		return []uintptr{unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV}
	}
	return []uintptr{unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0}
}

// setFilter is seccomp(2).
func setFilter(instructions []bpf.RawInstruction, flags []uintptr) (int, error) {
	// bpf.RawInstruction is laid out as struct sock_filter.
	prog := unix.SockFprog{Len: uint16(len(instructions)), Filter: (*unix.SockFilter)(unsafe.Pointer(&instructions[0]))}
	for _, flags := range flags {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
			flags|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINVAL:
		default:
			return -1, errno
		}
	}
	return -1, unix.EINVAL
}
