package asuser

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is a user that need not exist.
var nobody = &syscall.Credential{Uid: 54321, Gid: 54322, Groups: []uint32{54323}}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
}

// status reads what the calling thread is.
func status(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

// TestDo: f has the user's rights and no others, and the other threads keep theirs, also the main one, whichever
// goroutine runs there. What f may not, it may not.
func TestDo(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for range 50 {
		running.Go(func() {
			err := Do(nobody, func() error {
				// /proc shows those of files, too.
				for name, want := range map[string]string{
					"Uid": "0 54321 0 54321", "Gid": "0 54322 0 54322", "Groups": "54323",
					"CapEff": "0000000000000000", "CapPrm": "0000000000000000",
				} {
					if got := status(t, name); got != want {
						t.Errorf("%s is %q, want %q", name, got, want)
					}
				}
				return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
			})
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("nobody writes root's directory: %v", err)
			}
		})
	}
	running.Wait()
	others := func() (some []string) {
		tasks, _ := filepath.Glob("/proc/self/task/*/status")
		for _, task := range tasks {
			if text, err := os.ReadFile(task); err == nil && !strings.Contains(string(text), "Uid:\t0\t0\t0\t0\n") {
				some = append(some, string(text))
			}
		}
		return some
	}
	for start := time.Now(); len(others()) > 0; time.Sleep(time.Millisecond) { // the last ones are about to end
		if time.Since(start) > 5*time.Second {
			t.Fatalf("threads are somebody else: %s", others())
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// TestDoWithoutCapabilities: a process that is not root has no capabilities for its children, unless they
// inherit them.
func TestDoWithoutCapabilities(t *testing.T) {
	asRoot(t)
	ownThread(func() error {
		// As a program with the file capability cap_net_bind_service: not root, with one that is not inherited.
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			t.Error(err)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 54321, 54321, 54321); errno != 0 {
			t.Error(errno)
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var has [2]unix.CapUserData
		has[0].Permitted, has[0].Effective = 1<<unix.CAP_NET_BIND_SERVICE, 1<<unix.CAP_NET_BIND_SERVICE
		if err := unix.Capset(&header, &has[0]); err != nil {
			t.Error(err)
		}
		if err := become(nil); err != nil {
			t.Error(err)
		}
		if got := status(t, "CapEff"); got != "0000000000000000" {
			t.Errorf("CapEff is %s", got)
		}
		return nil
	})
}

// TestDoFails: f's error is returned, and so is that of who cannot become somebody else.
func TestDoFails(t *testing.T) {
	want := errors.New("because")
	if err := Do(nil, func() error { return want }); err != want {
		t.Error(err)
	}
	asRoot(t)
	err := Do(nobody, func() error {
		return become(&syscall.Credential{Uid: 1, Gid: 1})
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("nobody becomes another: %v", err)
	}
}
