package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/reuseport"
)

// ebpf is a value of --ebpf.
type ebpf int

const (
	ebpfAuto ebpf = iota // if that cannot do harm
	ebpfOn               // or not at all
	ebpfOff              // never
)

var ebpfWords = []string{"auto", "on", "off"}

var (
	errEBPFOff = errors.New("--ebpf off")
	errNoRight = errors.New("it takes CAP_BPF, which root has, and Linux 5.8 or later: in a systemd unit AmbientCapabilities=CAP_BPF")
	errSeccomp = errors.New("a seccomp filter is in force, which may end a program that tries: --ebpf on tries all the same")
)

// may says why eBPF is not to be tried; nil: it is.
func (e ebpf) may() error {
	switch {
	case e == ebpfOff:
		return errEBPFOff
	case !hasCapability(unix.CAP_BPF) && !hasCapability(unix.CAP_SYS_ADMIN):
		return errNoRight
	case e == ebpfAuto && isFiltered():
		return errSeccomp
	}
	return nil
}

// load loads so many programs, for so many slots.
func (e ebpf) load(n, slots int) (*reuseport.Programs, error) {
	if err := e.may(); err != nil {
		return nil, err
	}
	most := reuseport.MaxSlots
	if slots > most {
		most = hash.MaxSlots // a program for so many is dear
	}
	programs, err := reuseport.LoadPrograms(n, most)
	if err != nil && !hasCapability(unix.CAP_PERFMON) && !hasCapability(unix.CAP_SYS_ADMIN) {
		err = fmt.Errorf("%w; some kernels, such as Linux 6.1, want CAP_PERFMON beside CAP_BPF", err)
	}
	return programs, err
}

// check says why so many slots cannot be told apart; nil: they can.
func (e ebpf) check(slots int) error {
	programs, err := e.load(1, slots)
	programs.Close()
	return err
}

// loadPrograms gives a master the programs that it may come to need when it may not load any more: each address has one, those of both
// families one more for IPv4 alone, and where handfast follows its workers there may be some.
func (o opener) loadPrograms(config *master.Config, d decision) (err error) {
	n := len(d.listen)
	switch {
	case d.follow && o.drops:
		n = 4
	case d.follow:
		n = 1
	case o.drops:
		n *= 2
	}
	config.Programs, err = o.ebpf.load(n, config.Supervisor.Workers)
	return err
}

// logEBPF says whether what comes to slots is counted.
func logEBPF(config *master.Config, why error) {
	if why == nil {
		config.Logger.Info("the kernel counts what comes to slots", "by", "eBPF", "change_with", "--ebpf")
		return
	}
	config.Logger.Info("nobody counts what comes to slots: no eBPF", "reason", logging.WithoutPackages(why.Error()), "change_with", "--ebpf")
}

// adoptPrograms gives a master that takes another's place what it needs to load programs, if it may: where that one has loaded some,
// they are gone on with, which takes no right.
func (o opener) adoptPrograms(config *master.Config, adopt func() error) error {
	var why error
	config.Programs, why = o.ebpf.load(0, config.Supervisor.Workers)
	if err := adopt(); err != nil {
		return err
	}
	if len(config.Groups) > 0 {
		if !slices.ContainsFunc(config.Groups, func(g *reuseport.Group) bool { return g.Came() == nil }) {
			why = nil
		}
		logEBPF(config, why)
	}
	return nil
}

// hasCapability tells whether this thread has one of Linux's capabilities.
func hasCapability(n uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[n/32].Effective&(1<<(n%32)) != 0
}

// isFiltered tells whether a seccomp filter is in force, or that cannot be seen.
func isFiltered() bool {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		if mode, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(mode) != "0"
		}
	}
	return false // the kernel has no such thing
}
