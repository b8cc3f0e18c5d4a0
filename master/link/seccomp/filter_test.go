package seccomp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// TestProgram runs the filters as the kernel would: which calls pass, are asked about, or fail.
func TestProgram(t *testing.T) {
	if arch == 0 {
		t.Skip("no filter for this architecture")
	}
	const pass, ask, fail = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	const foreignArch = 0x1234
	for _, tt := range []struct {
		name       string
		arch       uint32
		call       uint32
		how        uint32 // its second argument
		bind, both uint32
	}{
		{"bind", arch, unix.SYS_BIND, 0, ask, ask},
		{"listen", arch, unix.SYS_LISTEN, 0, ask, ask},
		{"accept", arch, sock.CallAccept, 0, pass, ask},
		{"accept4", arch, unix.SYS_ACCEPT4, 0, pass, ask},
		{"io_uring_setup", arch, unix.SYS_IO_URING_SETUP, 0, fail, fail},
		{"shutdown for reading", arch, unix.SYS_SHUTDOWN, unix.SHUT_RD, ask, ask},
		{"shutdown for writing", arch, unix.SYS_SHUTDOWN, unix.SHUT_WR, pass, pass},
		{"shutdown for both", arch, unix.SYS_SHUTDOWN, unix.SHUT_RDWR, ask, ask},
		{"read", arch, unix.SYS_READ, 0, pass, pass},
		{"connect", arch, unix.SYS_CONNECT, 0, pass, pass},
		{"another architecture's bind", foreignArch, unix.SYS_BIND, 0, pass, pass},
		{"another architecture's io_uring_setup", foreignArch, unix.SYS_IO_URING_SETUP, 0, pass, pass},
	} {
		for filter, want := range map[Filter]uint32{Bind: tt.bind, BindAccept: tt.both} {
			if got := run(t, filter, tt.arch, tt.call, tt.how); got != want {
				t.Errorf("%s in filter %d: %#x, want %#x", tt.name, filter, got, want)
			}
			marked := (&Notification{Number: int32(tt.call | x32)}).Call()
			if arch == unix.AUDIT_ARCH_X86_64 && marked != int32(tt.call) {
				t.Errorf("%s: number %d", tt.name, marked)
			}
			if got := run(t, filter, tt.arch, tt.call|x32, tt.how); arch == unix.AUDIT_ARCH_X86_64 && got != want {
				t.Errorf("%s by x32 in filter %d: %#x, want %#x", tt.name, filter, got, want)
			}
		}
	}
}

// run returns what a filter says of a call. The virtual machine loads words of network order, the kernel
// those of the architecture.
func run(t *testing.T, f Filter, arch, call, how uint32) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(program(f.asks()))
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64) // struct seccomp_data
	binary.BigEndian.PutUint32(data[offNumber:], call)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	binary.BigEndian.PutUint32(data[offSecondArg:], how)
	result, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(result)
}
