package fdtest

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOrdinaryCalls: ordinary ones are named with the function that made them, raw ones are not.
func TestOrdinaryCalls(t *testing.T) {
	calls := OrdinaryCalls(t, func() {
		for range 100 {
			unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
		}
	})
	if len(calls) != 0 {
		t.Errorf("ordinary: %q", calls)
	}
	calls = OrdinaryCalls(t, func() {
		for range 10 {
			unix.Close(-1)
		}
	})
	if len(calls) != 1 || !strings.Contains(calls[0], "unix.Close < ") {
		t.Errorf("ordinary: %q, want unix.Close", calls)
	}
}
