package trap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/link/launch"
)

// checkTimeout bounds how long Check's child may take.
const checkTimeout = 10 * time.Second

// ErrUnavailable: this machine cannot do it. The text says what is missing, and what else would
// work.
var ErrUnavailable = errors.New("trap: servers that bind the port themselves cannot be given the slot's listener here")

// remedy is what else would work.
const remedy = "without it use --worker-link activation if the server can take an inherited socket (LISTEN_FDS), node or native, or --route master"

// Check tries with a child whether this machine can do what this package needs, as the user that
// runs it. The error says which part it cannot, and wraps ErrUnavailable.
func Check() error {
	if err := try(launch.Probe); err != nil {
		return fmt.Errorf("%w: %w; %s", ErrUnavailable, err, remedy)
	}
	return nil
}

// ErrNoInjection: this machine cannot do it. The text says what is missing, and what else would
// work.
var ErrNoInjection = errors.New("trap: servers that listen by themselves cannot be handed connections here")

// CheckInjection is Check for an Injector. The error wraps ErrNoInjection.
func CheckInjection() error {
	if err := tryInjection(); err != nil {
		return fmt.Errorf("%w: %w; without it use --worker-link native or node, or find clients by their addresses, with --route kernel", ErrNoInjection, err)
	}
	return nil
}

// tryInjection gives a child that accepts one connection to accept.
func tryInjection() error {
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer tcp.Close()
	conn, err := net.Dial("tcp4", tcp.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File() // a duplicate
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := openInjector(InjectorConfig{
		Addresses: []netip.AddrPort{tcp.Addr().(*net.TCPAddr).AddrPort()},
		Readmit:   fdpass.CloseHandoffs,
	}, launch.ProbeInject)
	if err != nil {
		return err
	}
	defer l.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-l.Ready():
			raw, err := file.SyscallConn()
			if err != nil {
				return
			}
			raw.Control(func(fd uintptr) {
				if own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
					h := []fdpass.Handoff{{FD: own}}
					if n, _ := l.Deliver(h); n == 0 {
						unix.Close(own)
					}
				}
			})
		case <-ended:
		}
	}()
	return explain(l.probe(tcp.Addr()), oldestForInjection)
}

func try(mode launch.Mode) error {
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer tcp.Close()
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := open(Config{Listeners: []*os.File{file}}, mode)
	if err != nil {
		return err
	}
	defer l.Close()
	return explain(l.probe(tcp.Addr()), oldestKernel)
}

// probe runs the child that binds a port.
func (l *child) probe(at net.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	command := l.Launch([]string{strconv.Itoa(at.(*net.TCPAddr).Port)})
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	err := cmd.Run()
	if err == nil {
		return nil
	}
	// What it has told us says more than its exit status.
	select {
	case <-l.Left():
		return l.Err()
	case <-time.After(checkTimeout / 10):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hidden != nil {
		return l.hidden
	}
	return fmt.Errorf("its bind was not answered: %w", err)
}

// The oldest kernels that have what the links need.
const (
	oldestKernel       = "5.9"
	oldestForInjection = "5.19"
)

// explain says what a failure comes from, if it is not that the kernel is older than the oldest.
func explain(err error, oldest string) error {
	var failed *launch.Error
	if !errors.As(err, &failed) {
		return err
	}
	switch {
	case failed.Step == launch.StepPlatform:
		return errors.New("there is no filter for this architecture; it needs x86-64 or arm64")
	case failed.Step == launch.StepNewPrivs:
		return fmt.Errorf("no_new_privs is refused (%w); it needs that or CAP_SYS_ADMIN", failed.Errno)
	case failed.Step != launch.StepFilter:
		return err
	}
	switch failed.Errno {
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("the kernel has no seccomp notifications (%w); it needs Linux %s or newer with CONFIG_SECCOMP_FILTER, and no sandbox such as gVisor that stands for it", failed.Errno, oldest)
	case unix.EBUSY:
		return fmt.Errorf("somebody watches this process by seccomp notifications already (%w), such as a container's manager or another handfast; it needs to be the only one", failed.Errno)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("seccomp(2) is refused (%w), as by a container's profile; it needs seccomp to be allowed", failed.Errno)
	}
	return err
}
