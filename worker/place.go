package worker

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
)

// Place is where the master has put this process.
type Place struct {
	Slot       int // 0 to Slots-1; also in WORKER_ID
	Slots      int // number of slots when the process was started
	Generation int // which reload started the process; the first is 1
}

// Self returns the place of this process; ok is false when it was not started by
// handfast.
func Self() (p Place, ok bool) {
	var err [3]error
	p.Slot, err[0] = strconv.Atoi(os.Getenv(fdpass.EnvSlot))
	p.Slots, err[1] = strconv.Atoi(os.Getenv(fdpass.EnvSlots))
	p.Generation, err[2] = strconv.Atoi(os.Getenv(fdpass.EnvGeneration))
	if errors.Join(err[:]...) != nil {
		return Place{}, false
	}
	return p, true
}

// inheritedMailbox returns the mailbox that the master left us, which the caller
// owns, or nil when there is none. It removes it from the environment and makes
// it close-on-exec, so that processes that this one starts do not take it for
// theirs.
func inheritedMailbox() (*os.File, error) {
	value, ok := os.LookupEnv(fdpass.EnvFD)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(fdpass.EnvFD)
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 0 {
		return nil, fmt.Errorf("worker: %s=%q is not a descriptor", fdpass.EnvFD, value)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("worker: %s=%s is not a handfast mailbox; was the descriptor closed by a wrapper, or the variable inherited from a worker?", fdpass.EnvFD, value)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "handfast mailbox"), nil
}
