// Command vm tries handfast on kernels and processors that are not this machine's: it boots kernels of Debian's archive under
// QEMU, with handfast, the tests of its packages, command chaos and command guest in the memory that the kernel starts from.
// A machine whose second word is systemd has systemd as process 1, and there handfast's package is installed, and its unit tried.
//
//	go run ./cmd/vm                             all machines of the table
//	go run ./cmd/vm bookworm/arm64 sid/systemd  these
//
// It needs Debian's apt-get, dpkg-deb, cpio, qemu-system-x86 or qemu-system-arm, and for systemd mmdebstrap, and runs as any
// user. A machine takes some minutes, since QEMU is its processor.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// machines are suites of Debian and processors: kernels from 5.10 to the newest, and systemd from 247.
var machines = []string{
	"bullseye/amd64", "bookworm/amd64", "trixie/amd64", "sid/amd64", "bookworm/arm64", "trixie/arm64",
	"bullseye/systemd", "bookworm/systemd", "trixie/systemd",
}

// A processor is how QEMU makes one.
var processors = map[string]struct {
	qemu, console string
	args          []string
}{
	"amd64": {"qemu-system-x86_64", "ttyS0", []string{"-cpu", "max"}},
	"arm64": {"qemu-system-aarch64", "ttyAMA0", []string{"-machine", "virt", "-cpu", "cortex-a72"}},
}

// limit is how long a machine may run.
const limit = time.Hour

func main() {
	verbose := flag.Bool("v", false, "show what the machines print")
	mirror := flag.String("mirror", "", "where Debian's archive is (default: where this machine has it from)")
	cache := flag.String("cache", "", "where kernels are kept (default: handfast-vm in the user's cache)")
	accel := flag.String("accel", "tcg", "kvm is faster where it works: for this machine's processor, and seldom inside of another virtual machine")
	pattern := flag.String("tests", "", "run the tests of those packages only whose folder this regular expression finds")
	flag.Parse()
	only, err := regexp.Compile(*pattern)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	asked := machines
	if flag.NArg() > 0 {
		asked = flag.Args()
	}
	failed := 0
	for _, name := range asked {
		begun := time.Now()
		summary, err := try(ctx, name, *mirror, *cache, *accel, only, *verbose)
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
func try(ctx context.Context, name, mirror, cache, accel string, only *regexp.Regexp, verbose bool) (string, error) {
	suite, arch, ok := strings.Cut(name, "/")
	systemd := arch == "systemd"
	if systemd {
		arch = "amd64"
	}
	processor, known := processors[arch]
	if !ok || !known {
		return "", fmt.Errorf("%s: want a suite of Debian and amd64, arm64 or systemd, such as bookworm/arm64", name)
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
	if mirror == "" {
		mirror = ownMirror(ctx)
	}
	from, err := fetch(ctx, mirror, filepath.Join(cache, suite+"-"+arch), suite, arch)
	if err != nil {
		return "", fmt.Errorf("no kernel of %s for %s: %w", suite, arch, err)
	}
	m := memory{ctx, filepath.Join(work, "root"), arch}
	if err := m.begin(from); err != nil {
		return "", err
	}
	if systemd {
		err = m.addSystem(mirror, filepath.Join(cache, suite+"-system.tar"), suite)
	} else {
		err = m.addTests(only, from.servers)
	}
	if err != nil {
		return "", err
	}
	packed := filepath.Join(work, "memory.cpio.gz")
	if err := run(ctx, "sh", "-c", `cd "$0" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > "$1"`, m.root, packed); err != nil {
		return "", err
	}
	return boot(ctx, processor.qemu, slices.Concat(processor.args, []string{
		"-accel", accel, "-smp", "2", "-m", "1536", "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot",
		"-kernel", from.kernel, "-initrd", packed, "-append", "console=" + processor.console + " panic=-1 quiet",
	}), verbose)
}

// boot runs a machine until it is off, and returns the last line of its guest.
func boot(ctx context.Context, qemu string, args []string, verbose bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, args...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
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
		return "", fmt.Errorf("%s: %w: %s", qemu, err, wrong.Bytes())
	}
	if rest, passed := strings.CutPrefix(result, "passed "); passed {
		return rest, nil
	}
	return "", fmt.Errorf("%s\n%s", cmp.Or(result, "the machine went off before its guest had ended"), strings.Join(said[max(0, len(said)-60):], "\n"))
}

// tested are the packages whose tests run in the machine, and those of their tests that need what is not there: the sources, a
// compiler, or another program than busybox's. Those that are real have tests with real servers, of which Python and nginx are there.
var tested = []struct {
	dir, skip string
	real      bool
}{
	{"hash", "", false},
	{"fdpass", "TestEnv", false},
	{"fdpass/sock", "", false},
	{"fdpass/forwarded", "TestHeadLinear", false}, // times, which mean nothing on a processor that is a program
	{"master/clientip", "", false},
	{"master/balancer", "TestReadmeExample", false},
	{"master/kernelroute", "TestStrangers|TestServedBeforeReady|TestOverdue", false}, // times, as well
	{"master/reuseport", "TestAddressForms", false},
	{"master/sockdiag", "", false},
	{"master/openconns", "", false},
	{"master/supervisor", "TestWorkerOfAnOddlyStartedMaster", false},
	{"master/pgroup", "", false},
	{"master/reexec", "", false},
	{"master/link/seccomp", "", false},
	{"master/link/bindswap", "", true},
	{"master/link/acceptinject", "", true},
	{"master/link/mailbox", "", false},
	{"master/link/nodeipc", "", false},
	{"worker", "", false},
}

// A memory is what a kernel starts from, as a directory.
type memory struct {
	ctx        context.Context
	root, arch string
}

// begin makes it with what all machines have.
func (m memory) begin(from fetched) error {
	for _, dir := range []string{"dev", "etc", "modules", "proc", "run", "sys", "tests", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(m.root, dir)); err != nil {
			return err
		}
	}
	if err := run(m.ctx, "cp", from.busybox, filepath.Join(m.root, "bin/busybox")); err != nil {
		return err
	}
	for i, module := range from.modules {
		if err := run(m.ctx, "sh", "-c", `case $0 in *.xz) xz -dc "$0";; *) cat "$0";; esac > "$1"`, module, filepath.Join(m.root, "modules", fmt.Sprint(i))); err != nil {
			return err
		}
	}
	return errors.Join(m.build("init", "build", "./cmd/vm/guest"), m.build("usr/bin/hello", "build", "./examples/hello"))
}

// build has go build or test write a program.
func (m memory) build(out string, args ...string) error {
	cmd := exec.CommandContext(m.ctx, "go", append(args[:len(args)-1:len(args)-1], "-ldflags=-s -w", "-o", filepath.Join(m.root, out), args[len(args)-1])...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+m.arch)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w: %s", args, err, said)
	}
	return nil
}

// addTests adds handfast, what disturbs it, the tests of its packages, of those only whose folder a pattern finds, and servers.
func (m memory) addTests(only *regexp.Regexp, servers []string) error {
	for _, p := range servers {
		if err := run(m.ctx, "sh", "-c", `dpkg-deb --fsys-tarfile "$0" | tar -x -C "$1" --keep-directory-symlink --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man`, p, m.root); err != nil {
			return err
		}
	}
	for out, source := range map[string]string{"handfast": "./cmd/handfast", "chaos": "./cmd/chaos", "worker": "./cmd/handfast/testdata/worker"} {
		if err := m.build("usr/bin/"+out, "build", source); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(m.root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.root, "etc/group"), []byte("root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"), 0o644); err != nil {
		return err
	}
	var list bytes.Buffer
	for _, p := range tested {
		if !only.MatchString(p.dir) {
			continue
		}
		name := strings.ReplaceAll(p.dir, "/", "_")
		if err := m.build("tests/"+name, "test", "-c", "-vet=off", "./"+p.dir); err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s %v %s\n", name, p.real, p.skip)
		if _, err := os.Stat(filepath.Join(p.dir, "testdata")); err == nil {
			at := filepath.Join(m.root, "tests", name+".d")
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := run(m.ctx, "cp", "-r", filepath.Join(p.dir, "testdata"), at); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(m.root, "tests/list"), list.Bytes(), 0o644)
}

// addSystem adds a small Debian with systemd, which is kept as the file system, two versions of handfast's package, and the
// socket unit of the examples.
func (m memory) addSystem(mirror, system, suite string) error {
	if _, err := os.Stat(system); err != nil {
		part := strings.TrimSuffix(system, ".tar") + ".part.tar"
		if err := run(m.ctx, "mmdebstrap", "--quiet", "--variant=essential", "--include=systemd-sysv", "--architectures="+m.arch,
			"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
			suite, part, "deb "+mirror+" "+suite+" main"); err != nil {
			return err
		}
		if err := os.Rename(part, system); err != nil {
			return err
		}
	}
	for _, version := range []string{"1", "2"} {
		built := filepath.Join(m.root, "..", version)
		if err := run(m.ctx, "go", "-C", "cmd/dist", "run", ".", "-o", built, "-arch", m.arch, "-version", "0.0."+version); err != nil {
			return err
		}
		if err := run(m.ctx, "cp", filepath.Join(built, "handfast_0.0."+version+"_linux_"+m.arch+".deb"), filepath.Join(m.root, version+".deb")); err != nil {
			return err
		}
	}
	return run(m.ctx, "cp", system, "examples/systemd/handfast.socket", m.root)
}

func run(ctx context.Context, program string, args ...string) error {
	if said, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return nil
}
