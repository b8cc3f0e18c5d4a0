package foreign

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
)

// probeTimeout bounds how long the child of Probe may take.
const probeTimeout = 10 * time.Second

// Probe runs, in place of a worker, the child that binds a port (launch.Probe). The error says which
// part this machine cannot do: oldest is the oldest kernel that has all of it.
func (l *Link) Probe(at net.Addr, oldest string) error {
	var running unix.Utsname
	unix.Uname(&running)
	return explain(l.probe(at), oldest, unix.ByteSliceToString(running.Release[:]))
}

func (l *Link) probe(at net.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	command := l.Launch([]string{strconv.Itoa(at.(*net.TCPAddr).Port)})
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.ExtraFiles = l.Files()
	err := cmd.Run()
	if err == nil {
		return nil
	}
	// The reason for which it left says more than its exit status, and what could not be looked into more than that.
	left := false
	select {
	case <-l.Left():
		left = true
	case <-time.After(probeTimeout / 10):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.hidden != nil:
		return l.hidden
	case left:
		return l.leftErr
	}
	return fmt.Errorf("its bind was not answered: %w", err)
}

// explain says what a failure comes from, and what is needed. oldest is the oldest kernel that can do all, running is this one.
func explain(err error, oldest, running string) error {
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
		return fmt.Errorf("seccomp notifications are missing or too old (%w); it needs Linux %s or newer with CONFIG_SECCOMP_FILTER, and no sandbox such as gVisor that stands for it: this is Linux %s", failed.Errno, oldest, running)
	case unix.EBUSY:
		return fmt.Errorf("somebody watches this process by seccomp notifications already (%w), such as a container's manager or another handfast; it needs to be the only one", failed.Errno)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("seccomp(2) is refused (%w), as by a container's profile; it needs seccomp to be allowed", failed.Errno)
	}
	return err
}
