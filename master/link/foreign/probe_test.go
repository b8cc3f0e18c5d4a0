package foreign

import (
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/launch"
)

// TestExplain: each thing that may be missing is named, with what it needs.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		step  launch.Step
		errno syscall.Errno
		want  string
	}{
		{launch.StepPlatform, unix.ENOSYS, "architecture"},
		{launch.StepNewPrivs, unix.EPERM, "no_new_privs is refused"},
		{launch.StepFilter, unix.EINVAL, "needs Linux 5.19 or newer with CONFIG_SECCOMP_FILTER, and no sandbox such as gVisor that stands for it: this is Linux 5.10.0-32"},
		{launch.StepFilter, unix.ENOSYS, "Linux 5.19"},
		{launch.StepFilter, unix.EPERM, "container's profile"},
		{launch.StepFilter, unix.EBUSY, "another handfast"},
	} {
		if err := explain(&launch.Error{Step: tt.step, Errno: tt.errno}, "5.19", "5.10.0-32"); !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.step, err)
		}
	}
}
