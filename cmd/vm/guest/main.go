// Command guest is process 1 of the machines that command vm boots: it runs the tests that lie in /tests, then handfast as its
// users do, says "guest: passed …" or "guest: FAILED …", and switches the machine off. Where there is a system with systemd it
// makes way for that, which starts it as a service.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve(os.Args[2])
	}
	if len(os.Args) > 1 && os.Args[1] == "systemd" {
		passed, failed := trySystemd()
		off(passed, failed, nil)
	}
	if systems, _ := filepath.Glob("/*-system.tar"); len(systems) > 0 {
		off(0, 0, makeWay(systems[0]))
	}
	passed, failed, err := 0, 0, setUp()
	if err == nil {
		passed, failed = tests()
		for _, t := range trials {
			try := t.run
			if t.held && isOlder(5, 19) {
				t.name += ": not on this kernel, and handfast says so"
				try = t.refused
			}
			if report(t.name, try()) {
				passed++
			} else {
				failed++
			}
		}
		if !chaos() {
			failed++
		}
	}
	off(passed, failed, err)
}

// isOlder tells whether the kernel is older than a version.
func isOlder(major, minor int) bool {
	var name unix.Utsname
	unix.Uname(&name)
	var has, and int
	fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &has, &and)
	return has < major || has == major && and < minor
}

// report says how a trial went.
func report(name string, err error) bool {
	if err != nil {
		fmt.Printf("FAIL %s: %v\n", name, err)
		return false
	}
	fmt.Println("ok  ", name)
	return true
}

// off says how all of it went, and switches the machine off.
func off(passed, failed int, err error) {
	var name unix.Utsname
	unix.Uname(&name)
	kernel := unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Machine[:])
	switch {
	case err != nil:
		fmt.Println("guest: FAILED to begin:", err)
	case failed > 0:
		fmt.Printf("guest: FAILED %d, passed %d on Linux %s\n", failed, passed, kernel)
	default:
		fmt.Printf("guest: passed %d on Linux %s\n", passed, kernel)
	}
	unix.Sync()
	time.Sleep(100 * time.Millisecond) // the console's last bytes
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// setUp makes of the bare machine one that programs expect.
func setUp() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.Chmod("/tmp", 0o1777|os.ModeSticky); err != nil {
		return err
	}
	os.MkdirAll("/dev/pts", 0o755)
	unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666")
	os.Symlink("/proc/self/fd", "/dev/fd")
	for variable, value := range map[string]string{"PATH": "/usr/sbin:/usr/bin", "HOME": "/tmp", "TMPDIR": "/tmp"} {
		os.Setenv(variable, value)
	}
	if said, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, said)
	}
	modules, _ := filepath.Glob("/modules/*") // sorted
	for _, module := range modules {
		if said, err := exec.Command("insmod", module).CombinedOutput(); err != nil {
			return fmt.Errorf("insmod: %w: %s", err, said)
		}
	}
	if said, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("lo: %w: %s", err, said)
	}
	return nil
}

// tests runs the tests of /tests/list: on each line a program, whether it runs real servers, too, and the tests that it leaves out.
func tests() (passed, failed int) {
	list, err := os.ReadFile("/tests/list")
	if err != nil {
		fmt.Println(err)
		return 0, 1
	}
	for line := range strings.Lines(string(list)) {
		program, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		real, skip, _ := strings.Cut(rest, " ")
		args := []string{"-test.v", "-test.timeout=40m"}
		if real == "false" {
			args = append(args, "-test.short")
		}
		if skip != "" {
			args = append(args, "-test.skip=^("+skip+")$")
		}
		cmd := exec.Command(filepath.Join("/tests", program), args...)
		cmd.Dir = "/tests/" + program + ".d"
		os.MkdirAll(cmd.Dir, 0o755)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		begun := time.Now()
		said, err := cmd.CombinedOutput()
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		count := bytes.Count(said, []byte("\n--- PASS: "))
		passed += count
		if err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n%s\n", program, err, last(noPasses(said), 6000))
			continue
		}
		fmt.Printf("ok   %s: %d tests, %d skipped, %.1f s\n", program, count, bytes.Count(said, []byte("\n--- SKIP: ")), time.Since(begun).Seconds())
	}
	return passed, failed
}

// chaos disturbs handfast for a while, also by setting the clock, which only here is nobody else's.
func chaos() (passed bool) {
	cmd := exec.Command("chaos", "-for", "40s", "-clients", "8", "-set-clock", "-handfast", "/usr/bin/handfast", "-worker", "/usr/bin/worker", "kernel/native", "master/native")
	said, err := cmd.CombinedOutput()
	if err != nil {
		fmt.Printf("FAIL chaos: %v\n%s\n", err, said)
		return false
	}
	fmt.Printf("ok   chaos: %s\n", said)
	return true
}

// noPasses returns the lines of a test's output that say more than that something begins, goes on, or has passed.
func noPasses(said []byte) []byte {
	var rest []byte
	for line := range bytes.Lines(said) {
		if start := bytes.TrimSpace(line); !bytes.HasPrefix(start, []byte("=== ")) && !bytes.HasPrefix(start, []byte("--- PASS")) {
			rest = append(rest, line...)
		}
	}
	return rest
}

func last(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
