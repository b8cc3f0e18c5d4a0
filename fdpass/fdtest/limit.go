package fdtest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// WithoutFiles calls f while this process may open no more files. Others of its goroutines may not either, so the test must not be
// parallel.
func WithoutFiles(t testing.TB, f func()) {
	t.Helper()
	var limit unix.Rlimit
	Check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	defer func() { Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	f()
}
