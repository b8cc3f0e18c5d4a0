package fdtest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedLinux skips the test on a kernel that is older than a version.
func NeedLinux(t testing.TB, major, minor int) {
	t.Helper()
	if release := Kernel(); isOlder(release, major, minor) {
		t.Skipf("Linux %s is older than %d.%d", release, major, minor)
	}
}

// IsLinuxOlder tells whether the kernel is older than a version.
func IsLinuxOlder(major, minor int) bool { return isOlder(Kernel(), major, minor) }

// Kernel returns the kernel's release, such as "6.1.0-50-cloud-amd64".
func Kernel() string {
	var name unix.Utsname
	unix.Uname(&name)
	return unix.ByteSliceToString(name.Release[:])
}

func isOlder(release string, major, minor int) bool {
	var has, and int
	fmt.Sscanf(release, "%d.%d", &has, &and)
	return has < major || has == major && and < minor
}
