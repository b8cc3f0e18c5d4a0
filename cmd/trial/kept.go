package trial

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// kept calls use with a folder that is kept beside Go's build cache, for other packages and later runs. A checkout
// finds it again by its name. Meanwhile no other process has it.
func kept(use func(folder string) error, name ...string) error {
	out, err := exec.Command("go", "env", "GOCACHE", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	cache, checkout, _ := strings.Cut(string(out), "\n")
	folder := filepath.Join(cache, "trial", fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q", append(name, checkout)))))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return os.NewSyscallError("flock", err)
	}
	return use(folder)
}

// filled returns a part of a folder of kept's, which fill has filled without an error, now or before.
func filled(folder string, fill func(folder string) error) (part string, err error) {
	part, begun := filepath.Join(folder, "filled"), filepath.Join(folder, "begun")
	if _, err := os.Stat(part); err == nil {
		return part, nil
	}
	if err := os.RemoveAll(begun); err != nil {
		return "", err
	}
	if err := os.Mkdir(begun, 0o755); err != nil {
		return "", err
	}
	if err := fill(begun); err != nil {
		return "", err
	}
	return part, os.Rename(begun, part)
}

// copyAll copies a program or folder out of a folder of kept's: the copy stays as it is when the original is built anew.
// cp writes it, since processes that we fork would inherit our open file, and a program that is open for writing
// cannot be run (ETXTBSY).
func copyAll(from, to string) error { return output(exec.Command("cp", "-R", from, to)) }
