package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/systemd"
)

const (
	// addressPatience is for how long an address that this machine does not have is tried again:
	// duplicate address detection takes an IPv6 address one to two seconds, and a machine that
	// starts, or takes an address over, some more. A dry run (package reexec) has ten seconds.
	addressPatience = 8 * time.Second
	// addressPause is the time between two tries.
	addressPause = 200 * time.Millisecond
)

// listening is what the master listens on.
type listening struct {
	addresses []string // as they were asked for
	passed    bool     // and what a service manager has opened
	socket    string   // of which the first Unix socket is at this path
}

// passedBy returns the listeners that a service manager has opened, and whether it has: a program that
// takes the place of another (before is not nil) has them from that.
func passedBy(before *predecessor) (lns []net.Listener, on listening, err error) {
	if before != nil {
		return nil, listening{passed: before.Passed, socket: before.Socket}, nil
	}
	lns, err = systemd.Inherited()
	on.passed = len(lns) > 0
	for _, ln := range lns {
		if at, ok := ln.Addr().(*net.UnixAddr); ok && on.socket == "" {
			on.socket = at.Name
		}
	}
	return lns, on, err
}

// openAddresses makes the plan, and opens what the master listens on.
func (a asked) openAddresses(ctx context.Context, config *master.Config, before *predecessor) (on listening, err error) {
	if config.Listeners, on, err = passedBy(before); err != nil {
		return on, err
	}
	r := a.intent()
	f := r.gather(config.Supervisor.Setting, config.Supervisor.Command, on.passed)
	f.passedSocket = on.socket
	if before != nil {
		f.noEBPF = nil // what that one has loaded is gone on with
	}
	d, err := r.decide(f)
	if err != nil {
		closeAll(config.Listeners)
		return on, err
	}
	d.configure(config)
	on.addresses = d.listen
	return on, a.opens.open(ctx, config, d, before)
}

// opener opens what the master listens on.
type opener struct {
	free  bool // also addresses that the machine does not have yet
	ebpf  ebpf
	drops bool // rights, when all is open
}

// open opens what a plan says, beside what a service manager has opened. A program that takes the
// place of another (before is not nil) goes on with what that listened on.
func (o opener) open(ctx context.Context, config *master.Config, d decision, before *predecessor) error {
	if before != nil {
		return o.adoptPrograms(config, func() error { return before.listen(ctx, config, o, d) })
	}
	var noEBPF error
	if d.route == routeKernel {
		if noEBPF = o.loadPrograms(config, d); noEBPF != nil && o.ebpf == ebpfOn {
			return fmt.Errorf("--ebpf on: %w; --ebpf auto goes on without", noEBPF)
		}
	}
	if d.follow {
		d.logRoute(config.Logger)
		logEBPF(config, noEBPF)
		return nil
	}
	if d.route == routeKernel {
		err := o.groups(ctx, config, d.listen)
		if err == nil {
			d.logRoute(config.Logger)
			logEBPF(config, noEBPF)
		}
		if err == nil || !d.fallback || isAddressError(err) {
			return err
		}
		d = d.withoutKernel(err)
	}
	d.logRoute(config.Logger)
	return o.listeners(ctx, config, d.listen)
}

// socket returns where to bind a listener for an address of a plan, and what prepares its socket.
func (o opener) socket(address string) (bind string, prepare func(fd int) error) {
	at, whole := strings.CutPrefix(address, wholeLoopback)
	if whole {
		host, port, _ := net.SplitHostPort(at)
		all := netip.IPv4Unspecified()
		if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
			all = netip.IPv6Unspecified()
		}
		at = net.JoinHostPort(all.String(), port)
	}
	return at, func(fd int) (err error) {
		if o.free {
			err = fdpass.SetFreebind(fd)
		}
		if whole {
			err = errors.Join(err, sock.BindToLoopback(fd))
		}
		return err
	}
}

// isAddressError tells whether the master could not listen either.
func isAddressError(err error) bool {
	for _, errno := range []error{unix.EADDRINUSE, unix.EADDRNOTAVAIL, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	_, lookup := errors.AsType[*net.DNSError](err)
	_, address := errors.AsType[*net.AddrError](err)
	return lookup || address
}

// groups opens a group of listeners for each address.
func (o opener) groups(ctx context.Context, config *master.Config, addresses []string) error {
	for _, address := range addresses {
		address, prepare := o.socket(address)
		err := whenThere(ctx, config, address, func() error {
			g, err := reuseport.ListenWith(ctx, address, config.Balancer.Clients.Hash, config.Supervisor.Workers, reuseport.Options{Prepare: prepare, Programs: config.Programs})
			if err == nil {
				config.Groups = append(config.Groups, g)
			}
			return err
		})
		if err != nil {
			for _, g := range config.Groups {
				g.Close()
			}
			config.Groups = nil
			return listenError(ctx, address, err)
		}
	}
	return nil
}

// listeners opens a listener for each address.
func (o opener) listeners(ctx context.Context, config *master.Config, addresses []string) error {
	for _, address := range addresses {
		if isSocket(address) {
			ln, err := listenSocket(address)
			if err != nil {
				closeAll(config.Listeners)
				return err
			}
			config.Listeners = append(config.Listeners, ln)
			continue
		}
		address, prepare := o.socket(address)
		err := whenThere(ctx, config, address, func() error {
			ln, err := balancer.ListenWith(ctx, address, prepare)
			if err == nil {
				config.Listeners = append(config.Listeners, ln)
			}
			return err
		})
		if err != nil {
			closeAll(config.Listeners)
			return listenError(ctx, address, err)
		}
	}
	return nil
}

// whenThere calls open until the address is there, or for as long as addressPatience.
func whenThere(ctx context.Context, config *master.Config, address string, open func() error) error {
	deadline := time.Now().Add(addressPatience)
	for tries := 0; ; tries++ {
		err := open()
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		why, hopeless := absent(address)
		if hopeless || time.Now().After(deadline) {
			return fmt.Errorf("%w: %s; --freebind listens on an address that comes later", err, why)
		}
		if tries == 0 {
			config.Logger.Warn("address is not there yet, trying again", "listen", address, "why", why, "for", addressPatience.String(),
				"otherwise", "--freebind listens on an address that comes later")
		}
		select {
		case <-time.After(addressPause):
		case <-ctx.Done():
			return err
		}
	}
}

// The states of an IPv6 address (linux/if_addr.h, IFA_F_).
const (
	dadFailed = 0x08
	tentative = 0x40
)

// absent says why an address cannot be bound, and whether that will not change by itself.
func absent(address string) (why string, hopeless bool) {
	host, _, _ := net.SplitHostPort(address)
	table, err := os.Open("/proc/net/if_inet6")
	if err == nil {
		defer table.Close()
		for lines := bufio.NewScanner(table); lines.Scan(); {
			flags, ok := ipv6Flags(lines.Text(), host)
			switch {
			case ok && flags&dadFailed != 0:
				return "another machine has the address (duplicate address detection failed)", true
			case ok && flags&tentative != 0:
				return "the address is tentative until duplicate address detection is over", false
			}
		}
	}
	return "no interface has the address", false
}

// ipv6Flags returns the state of an address if this line of /proc/net/if_inet6 is about it:
//
//	fe800000000000000000000000000001 02 40 20 c0     eth0
func ipv6Flags(line, host string) (flags uint64, ok bool) {
	addr, err := netip.ParseAddr(host)
	fields := strings.Fields(line)
	if err != nil || len(fields) < 6 || !addr.Is6() || addr.Zone() != "" && addr.Zone() != fields[5] {
		return 0, false
	}
	b, err := hex.DecodeString(fields[0])
	if err != nil || len(b) != 16 || netip.AddrFrom16([16]byte(b)) != addr.WithZone("") {
		return 0, false
	}
	flags, err = strconv.ParseUint(fields[4], 16, 32)
	return flags, err == nil
}

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		ln.Close()
	}
}
