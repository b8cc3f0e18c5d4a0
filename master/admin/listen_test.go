package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/unixsocket"
)

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]Address{
		"/run/x.sock":    {"unix", "/run/x.sock"},
		"./x":            {"unix", "./x"},
		"127.0.0.1:9000": {"tcp", "127.0.0.1:9000"},
		":9000":          {"tcp", "127.0.0.1:9000"},
		"0.0.0.0:0":      {"tcp", "0.0.0.0:0"},
		"[::]:9000":      {"tcp", "[::]:9000"},
		"host:9000":      {"tcp", "host:9000"},
	} {
		if got, err := ParseAddress(s); got != want || err != nil {
			t.Errorf("%q is %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "x", "9000", "host:", "host:http", "host:70000", "::1:9000"} {
		if got, err := ParseAddress(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"handfast": true, "api-2": true, "": false, "a/b": false, "..": false, ".x": false, strings.Repeat("x", 41): false, "a\x00": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestMode: nobody but its user can open the socket, whatever the umask is, and it has no other
// mode before: it has no other name then, and a mode from the start.
func TestMode(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		a := socket(t)
		var ln net.Listener
		var err error
		func() {
			defer unix.Umask(unix.Umask(umask))
			ln, err = Listen(t.Context(), a)
		}()
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(a.Address)
		if err != nil || info.Mode()&^0o600 != fs.ModeSocket || umask != 0o777 && info.Mode().Perm() != 0o600 {
			t.Errorf("umask %#o: %v, %v", umask, info.Mode(), err)
		}
		entries, _ := os.ReadDir(filepath.Dir(a.Address))
		if len(entries) != 1 || ln.Addr().String() != a.Address {
			t.Errorf("%v, %v", entries, ln.Addr())
		}
		ln.Close()
		if _, err := os.Lstat(a.Address); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket stays: %v", err)
		}
		ln.Close()
	}
}

// abandon leaves a socket behind, as a process does that is killed.
func abandon(t *testing.T, a Address) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: a.Address}); err != nil {
		t.Fatal(err)
	}
}

// TestStale: what a dead process has left is replaced, and a living one is named.
func TestStale(t *testing.T) {
	a := socket(t)
	abandon(t, a)
	ln, err := Listen(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Listen(t.Context(), a)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) || !strings.Contains(err.Error(), "--name") {
		t.Error(err)
	}
	if conn, err := net.Dial("unix", a.Address); err != nil {
		t.Errorf("the living one was harmed: %v", err)
	} else {
		conn.Close()
	}
}

// TestNotOurs: closing removes no socket that somebody has put there instead, and nothing that
// is no socket is replaced.
func TestNotOurs(t *testing.T) {
	a := socket(t)
	ln, err := Listen(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(a.Address)
	abandon(t, a)
	ln.Close()
	if _, err := os.Lstat(a.Address); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
	os.Remove(a.Address)
	if err := os.WriteFile(a.Address, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ln, err := Listen(t.Context(), a); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("%v, %v", ln, err)
	}
	if b, _ := os.ReadFile(a.Address); string(b) != "mine" {
		t.Errorf("the file was changed: %q", b)
	}
}

// TestAtOnce: of several that start at the same time on a socket that was left behind, one
// listens.
func TestAtOnce(t *testing.T) {
	for range 20 {
		a := socket(t)
		abandon(t, a)
		var mu sync.Mutex
		var lns []net.Listener
		var starting sync.WaitGroup
		for range 8 {
			starting.Go(func() {
				ln, err := Listen(t.Context(), a)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					lns = append(lns, ln)
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
			})
		}
		starting.Wait()
		if len(lns) != 1 {
			t.Errorf("%d listen", len(lns))
		}
		for _, ln := range lns {
			ln.Close()
		}
	}
}

func TestPaths(t *testing.T) {
	long := Address{"unix", "/tmp/" + strings.Repeat("x", unixsocket.MaxPath)}
	if _, err := Listen(t.Context(), long); err == nil || !strings.Contains(err.Error(), fmt.Sprint(unixsocket.MaxPath)) {
		t.Error(err)
	}
	longest := socket(t)
	longest.Address += strings.Repeat("x", unixsocket.MaxPath-len(longest.Address))
	if ln, err := Listen(t.Context(), longest); err != nil {
		t.Error(err)
	} else {
		ln.Close()
	}
	if _, err := Listen(t.Context(), Address{"unix", "/nowhere/at/all"}); err == nil {
		t.Error("listens nowhere")
	}
}

// asUser runs this test binary's test as another user, if it may.
const otherUser = 65534

const roleEnv = "ADMIN_TEST_SOCKET"

// TestAnotherUser is refused, and told why.
func TestAnotherUser(t *testing.T) {
	if path := os.Getenv(roleEnv); path != "" {
		_, err := NewClient(Address{"unix", path}).Status(t.Context())
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "another user") {
			t.Fatalf("asked as user %d: %v", os.Getuid(), err)
		}
		return
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to be another user")
		}
		t.Skip("needs root, to be another user")
	}
	a := socket(t)
	os.Chmod(filepath.Dir(a.Address), 0o755)
	serve(t, newFake(1), a)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The binary may be where that user cannot look.
	copied := filepath.Join(filepath.Dir(a.Address), "test")
	if err := exec.Command("cp", self, copied).Run(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "-test.run=^TestAnotherUser$", "-test.count=1")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), roleEnv+"="+a.Address)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDirectories: where the socket is by default, and that nobody else could have put it there.
func TestDirectories(t *testing.T) {
	dir := filepath.Dir(socket(t).Address)
	t.Setenv("RUNTIME_DIRECTORY", dir+":/run/other")
	a, err := DefaultAddress("api")
	if err != nil || a != (Address{"unix", dir + "/api.sock"}) {
		t.Errorf("%v, %v", a, err)
	}
	t.Setenv("RUNTIME_DIRECTORY", dir+"/new")
	if _, err := DefaultAddress("api"); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(dir + "/new"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	os.Chmod(dir+"/new", 0o770)
	if _, err := DefaultAddress("api"); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Error(err)
	}
	t.Setenv("RUNTIME_DIRECTORY", dir+"/link")
	os.Symlink(dir, dir+"/link")
	if _, err := DefaultAddress("api"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	if os.Getuid() == 0 {
		os.Chmod(dir+"/new", 0o700)
		os.Chown(dir+"/new", otherUser, otherUser)
		if err := checkPrivate(dir + "/new"); err == nil || !strings.Contains(err.Error(), "belongs to user") {
			t.Error(err)
		}
	}
	t.Setenv("RUNTIME_DIRECTORY", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	want := systemDirectory
	if os.Getuid() != 0 {
		want = "/run/user/7/handfast"
	}
	if dirs := directories(); dirs[0] != want || dirs[len(dirs)-1] != systemDirectory {
		t.Errorf("%q", dirs)
	}
}

// TestFind: by name, where it is by default; else the error says where it was looked for, and
// what there is.
func TestFind(t *testing.T) {
	dir := filepath.Dir(socket(t).Address)
	t.Setenv("RUNTIME_DIRECTORY", dir)
	a, err := DefaultAddress("api")
	if err != nil {
		t.Fatal(err)
	}
	_, stop := serve(t, newFake(1), a)
	c, err := Find(t.Context(), "api")
	if err != nil || c.Addr() != a {
		t.Fatalf("%v, %v", c, err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Find(t.Context(), "web"); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), dir+"/web.sock") || !strings.Contains(err.Error(), "--name api") {
		t.Error(err)
	}
	// Row C7: without a name the default one, else the only one.
	abandon(t, socketIn(dir, "killed"))
	if c, err := Find(t.Context(), ""); err != nil || c.Addr() != a {
		t.Errorf("the only one: %v, %v", c, err)
	}
	if name := NameOf(t.Context(), os.Getpid()); name != "api" {
		t.Errorf("this process is named %q", name)
	}
	_, stopOther := serve(t, newFake(1), socketIn(dir, "other"))
	if _, err := Find(t.Context(), ""); !errors.Is(err, ErrSeveral) || !strings.Contains(err.Error(), "--name api or --name other") {
		t.Errorf("of two: %v", err)
	}
	if names := Running(t.Context()); !slices.Contains(names, "api") || !slices.Contains(names, "other") || slices.Contains(names, "killed") {
		t.Errorf("running: %q", names)
	}
	_, stopDefault := serve(t, newFake(1), socketIn(dir, DefaultName))
	if c, err := Find(t.Context(), ""); err != nil || c.Addr() != socketIn(dir, DefaultName) {
		t.Errorf("the default one: %v, %v", c, err)
	}
	stopDefault()
	stopOther()
	stop()
	abandon(t, a)
	if _, err := Find(t.Context(), "api"); !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "has ended") {
		t.Error(err)
	}
}
