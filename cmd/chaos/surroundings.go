package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideEnv is set in the process that has a mount namespace of its own.
const insideEnv = "HANDFAST_CHAOS_INSIDE"

func inside() bool { return os.Getenv(insideEnv) != "" }

// enter runs this program again in a mount namespace of its own: what is mounted there ends with it. Where there can be none it runs without.
func enter() int {
	runtime.LockOSThread() // the child ends with the thread that has started it
	for _, attr := range []*syscall.SysProcAttr{
		{Cloneflags: unix.CLONE_NEWNS},
		{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		},
		{},
	} {
		attr.Pdeathsig = unix.SIGKILL
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		if cmd.Start() != nil {
			continue
		}
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		go func() {
			for sig := range signals {
				cmd.Process.Signal(sig)
			}
		}()
		cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "chaos: cannot run itself")
	return 1
}

// disk is a small file system.
type disk struct {
	dir  string
	size string
}

// newDisk mounts one, or says why it cannot be had; dir is a directory in any case.
func newDisk(dir string) (*disk, error) {
	d := &disk{dir, "64m"}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return d, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return d, os.NewSyscallError("mount", err)
	}
	return d, os.NewSyscallError("mount", unix.Mount("chaos", dir, "tmpfs", 0, "size="+d.size))
}

// fill leaves no byte of it.
func (d *disk) fill() error {
	f, err := os.Create(filepath.Join(d.dir, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	for err = nil; err == nil; {
		_, err = f.Write([]byte{0})
	}
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return nil
}

func (d *disk) free() { os.Remove(filepath.Join(d.dir, "ballast")) }

func (d *disk) unmount() { unix.Unmount(d.dir, unix.MNT_DETACH) }

// memory is a cgroup that can be made too small.
type memory struct {
	dir                 string
	limit, usage, kills string // names of files
	none                string // no limit
}

// newMemory makes one below this process's, by either version of cgroups, or says why it cannot.
func newMemory(name string) (*memory, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for entry := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSpace(entry), ":", 3)
		var m *memory
		switch {
		case len(part) < 3:
			continue
		case part[1] == "memory":
			m = &memory{"/sys/fs/cgroup/memory" + part[2], "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "-1"}
		case part[0] == "0":
			m = &memory{"/sys/fs/cgroup" + part[2], "memory.max", "memory.current", "memory.events", "max"}
		default:
			continue
		}
		m.dir = filepath.Join(m.dir, name)
		if err = os.Mkdir(m.dir, 0o755); err != nil {
			continue
		}
		if err = m.unlimited(); err == nil {
			return m, nil
		}
		os.Remove(m.dir)
	}
	return nil, fmt.Errorf("no cgroup for memory: %w", cmp.Or(err, os.ErrNotExist))
}

func (m *memory) write(file, text string) error {
	return os.WriteFile(filepath.Join(m.dir, file), []byte(text), 0)
}

func (m *memory) unlimited() error { return m.write(m.limit, m.none) }

// tighten leaves so many bytes beyond those that are used.
func (m *memory) tighten(room int) error {
	text, err := os.ReadFile(filepath.Join(m.dir, m.usage))
	if err != nil {
		return err
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return m.write(m.limit, strconv.Itoa(used+room))
}

// killed is how many processes the kernel has killed for want of memory.
func (m *memory) killed() (n int) {
	text, _ := os.ReadFile(filepath.Join(m.dir, m.kills))
	for entry := range bytes.Lines(text) {
		fmt.Sscanf(string(entry), "oom_kill %d", &n)
	}
	return n
}

func (m *memory) remove() {
	for range 100 { // a process that has just ended is still counted
		if os.Remove(m.dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
