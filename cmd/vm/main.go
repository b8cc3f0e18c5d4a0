// Command vm tries handfast on kernels and processors that are not this machine's: it boots kernels of Debian's archive under
// QEMU, with handfast, the tests of its packages, command chaos and command guest in the memory that the kernel starts from.
//
//	go run ./cmd/vm                          all machines of the table
//	go run ./cmd/vm bookworm/arm64 sid/amd64 these
//
// It needs Debian's apt-get, dpkg-deb, cpio, and qemu-system-x86 or qemu-system-arm, and runs as any user. A machine takes
// some minutes, since QEMU is its processor.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// machines are suites of Debian and processors: kernels from 5.10 to the newest.
var machines = []string{"bullseye/amd64", "bookworm/amd64", "trixie/amd64", "sid/amd64", "bookworm/arm64", "trixie/arm64"}

// A processor is how QEMU makes one.
var processors = map[string]struct {
	qemu, console string
	args          []string
}{
	"amd64": {"qemu-system-x86_64", "ttyS0", []string{"-cpu", "max"}},
	"arm64": {"qemu-system-aarch64", "ttyAMA0", []string{"-machine", "virt", "-cpu", "cortex-a72"}},
}

// limit is how long a machine may run.
const limit = 30 * time.Minute

func main() {
	verbose := flag.Bool("v", false, "show what the machines print")
	mirror := flag.String("mirror", "", "where Debian's archive is (default: where this machine has it from)")
	cache := flag.String("cache", "", "where kernels are kept (default: handfast-vm in the user's cache)")
	accel := flag.String("accel", "tcg", "kvm is faster where it works: for this machine's processor, and seldom inside of another virtual machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	asked := machines
	if flag.NArg() > 0 {
		asked = flag.Args()
	}
	failed := 0
	for _, name := range asked {
		begun := time.Now()
		summary, err := try(ctx, name, *mirror, *cache, *accel, *verbose)
		if err != nil {
			failed++
			summary = fmt.Sprintf("FAILED: %v", err)
		}
		fmt.Printf("%-16s %s, %.0f s\n", name, summary, time.Since(begun).Seconds())
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// try boots one machine and returns what its guest says at the end.
func try(ctx context.Context, name, mirror, cache, accel string, verbose bool) (string, error) {
	suite, arch, ok := strings.Cut(name, "/")
	processor, known := processors[arch]
	if !ok || !known {
		return "", fmt.Errorf("%s: want a suite of Debian and amd64 or arm64, such as bookworm/arm64", name)
	}
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "handfast-vm")
	}
	work, err := os.MkdirTemp("", "handfast-vm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	from, err := fetch(ctx, cmp.Or(mirror, ownMirror(ctx)), filepath.Join(cache, suite+"-"+arch), suite, arch)
	if err != nil {
		return "", fmt.Errorf("no kernel of %s for %s: %w", suite, arch, err)
	}
	memory := filepath.Join(work, "memory.cpio.gz")
	if err := pack(ctx, filepath.Join(work, "root"), memory, arch, from); err != nil {
		return "", err
	}
	return boot(ctx, processor.qemu, slices.Concat(processor.args, []string{
		"-accel", accel, "-smp", "2", "-m", "1536", "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot",
		"-kernel", from.kernel, "-initrd", memory, "-append", "console=" + processor.console + " panic=-1 quiet",
	}), verbose)
}

// boot runs a machine until it is off, and returns the last line of its guest.
func boot(ctx context.Context, qemu string, args []string, verbose bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, args...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	console, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var said []string
	result := ""
	for lines := bufio.NewScanner(console); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		if verbose {
			fmt.Println(line)
		}
		said = append(said, line)
		if _, after, found := strings.Cut(line, "guest: "); found {
			result = after
		}
	}
	io.Copy(io.Discard, console)
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", qemu, err, errors.Bytes())
	}
	if rest, passed := strings.CutPrefix(result, "passed "); passed {
		return rest, nil
	}
	return "", fmt.Errorf("%s\n%s", cmp.Or(result, "the machine went off before its guest had ended"), strings.Join(said[max(0, len(said)-60):], "\n"))
}

// tested are the packages whose tests run in the machine, and those of their tests that need what is not there: the sources, a
// compiler, or another program than busybox's.
var tested = []struct{ dir, skip string }{
	{"hash", ""},
	{"fdpass", "TestEnv"},
	{"fdpass/sock", ""},
	{"fdpass/forwarded", "TestHeadLinear"}, // times, which mean nothing on a processor that is a program
	{"master/clientip", ""},
	{"master/balancer", "TestReadmeExample"},
	{"master/kernelroute", "TestStrangers|TestServedBeforeReady|TestOverdue"}, // times, as well
	{"master/reuseport", "TestAddressForms|TestLoadWithoutRights"},
	{"master/sockdiag", ""},
	{"master/openconns", ""},
	{"master/supervisor", "TestWorkerOfAnOddlyStartedMaster"},
	{"master/pgroup", ""},
	{"master/reexec", ""},
	{"master/link/seccomp", ""},
	{"master/link/bindswap", ""},
	{"master/link/acceptinject", ""},
	{"master/link/mailbox", ""},
	{"master/link/nodeipc", ""},
	{"worker", ""},
}

// pack makes the memory that a kernel starts from.
func pack(ctx context.Context, root, memory, arch string, from fetched) error {
	for _, dir := range []string{"bin", "dev", "etc", "modules", "proc", "run", "sys", "tests", "tmp", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644); err != nil {
		return err
	}
	if err := run(ctx, "cp", from.busybox, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	for i, module := range from.modules {
		if err := run(ctx, "sh", "-c", `case $0 in *.xz) xz -dc "$0";; *) cat "$0";; esac > "$1"`, module, filepath.Join(root, "modules", fmt.Sprint(i))); err != nil {
			return err
		}
	}
	build := func(out string, args ...string) error {
		cmd := exec.CommandContext(ctx, "go", append(args[:len(args)-1:len(args)-1], "-ldflags=-s -w", "-o", filepath.Join(root, out), args[len(args)-1])...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %v: %w: %s", args, err, said)
		}
		return nil
	}
	for out, source := range map[string]string{"init": "./cmd/vm/guest", "usr/bin/handfast": "./cmd/handfast", "usr/bin/hello": "./examples/hello",
		"usr/bin/chaos": "./cmd/chaos", "usr/bin/worker": "./cmd/handfast/testdata/worker"} {
		if err := build(out, "build", source); err != nil {
			return err
		}
	}
	var list bytes.Buffer
	for _, p := range tested {
		name := strings.ReplaceAll(p.dir, "/", "_")
		if err := build("tests/"+name, "test", "-c", "-vet=off", "./"+p.dir); err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s %s\n", name, p.skip)
		if _, err := os.Stat(filepath.Join(p.dir, "testdata")); err == nil {
			at := filepath.Join(root, "tests", name+".d")
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := run(ctx, "cp", "-r", filepath.Join(p.dir, "testdata"), at); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(root, "tests/list"), list.Bytes(), 0o644); err != nil {
		return err
	}
	return run(ctx, "sh", "-c", `cd "$0" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > "$1"`, root, memory)
}

func run(ctx context.Context, program string, args ...string) error {
	if said, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return nil
}
