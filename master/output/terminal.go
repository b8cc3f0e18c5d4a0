package output

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

// openTerminal makes a terminal (man 4 pts). The caller owns both ends: ours can be polled, and the worker's passes
// bytes on as they are: no carriage return is added to a line.
func openTerminal() (ours, theirs *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(fd)
		return nil, nil, os.NewSyscallError("ioctl", err)
	}
	// By the descriptor, not by a name that may be another's in this mount namespace (Linux 4.13).
	far, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		unix.Close(fd)
		return nil, nil, os.NewSyscallError("ioctl", errno)
	}
	if err := makePlain(int(far)); err != nil {
		unix.Close(fd)
		unix.Close(int(far))
		return nil, nil, os.NewSyscallError("ioctl", err)
	}
	return os.NewFile(uintptr(fd), "terminal of a worker"), os.NewFile(far, "terminal of a worker"), nil
}

// makePlain has a terminal neither change what is written to it nor answer it.
func makePlain(fd int) error {
	attributes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	attributes.Oflag &^= unix.OPOST
	attributes.Lflag &^= unix.ECHO | unix.ECHONL
	return unix.IoctlSetTermios(fd, unix.TCSETS, attributes)
}

func windowSize(terminal *os.File) (size *unix.Winsize, err error) {
	err = sock.Control(terminal, func(fd int) (err error) {
		size, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		return err
	})
	return size, err
}

// IsTerminal tells whether a file is one.
func IsTerminal(file *os.File) bool {
	return sock.Control(file, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	}) == nil
}

// Same tells whether two files are the same one, so that lines in both come to the same place.
func Same(a, b *os.File) bool {
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
