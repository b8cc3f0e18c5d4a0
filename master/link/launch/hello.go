package launch

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// maxHello bounds what a child says: "pid 4194304" or "error seccomp 22".
const maxHello = 64

// Error says which step a child could not do, and why.
type Error struct {
	Step  Step
	Errno syscall.Errno
}

// Step is what a child does before it becomes the command.
type Step string

// The steps.
const (
	StepReceive  Step = "receive"  // the listeners
	StepPlatform Step = "platform" // we have a filter for this architecture
	StepNewPrivs Step = "no_new_privs"
	StepFilter   Step = "seccomp" // a filter with notifications
	StepSend     Step = "send"    // the descriptor of its notifications
)

func (e *Error) Error() string { return fmt.Sprintf("preparing the process: %s: %v", e.Step, e.Errno) }

func (e *Error) Unwrap() error { return e.Errno }

// errHello: the child has said something else, or has ended.
var errHello = errors.New("preparing the start of a worker: its process said nothing that we understand")

func (e *Error) hello() []byte { return fmt.Appendf(nil, "error %s %d", e.Step, uint(e.Errno)) }

func pidHello(pid int) []byte { return fmt.Appendf(nil, "pid %d", pid) }

// parseHello returns the child's pid, or what it could not do as an *Error.
func parseHello(text []byte) (pid int, err error) {
	words := strings.Split(string(text), " ")
	switch {
	case len(words) == 2 && words[0] == "pid":
		if pid, err := strconv.Atoi(words[1]); err == nil && pid > 0 {
			return pid, nil
		}
	case len(words) == 3 && words[0] == "error":
		if errno, err := strconv.ParseUint(words[2], 10, 12); err == nil && errno > 0 {
			return 0, &Error{Step(words[1]), syscall.Errno(errno)}
		}
	}
	return 0, errHello
}
