package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/link/acceptinject"
	"github.com/handfast/handfast/master/link/bindswap"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// facts are what the plan depends on, besides what was asked for. Those on which the plan for that does
// not depend are not looked up, and zero.
type facts struct {
	// Of the command, for --worker-link auto and node.
	program    programs.Command // it comes to this
	server     programs.Server  // which is that
	known      bool             // it is one
	mailbox    bool             // it is not Node, and names HANDFAST_FD
	project    nodeipc.Project  // of a Node script
	masterCall string           // by which such a script runs workers of its own; empty: none

	// Of the machine: nil, or what it lacks.
	noProc        error // to start workers that listen, and to see that they are ready
	noBind        error // to give a server a listener when it binds
	noInjection   error // to give a server connections when it accepts
	noSlotAddress error // to listen on slots' own addresses
	noEBPF        error // to tell more than reuseport.MaxSlots slots apart

	// Of the environment.
	passed       bool   // a service manager has opened listeners
	passedSocket string // the path of the first Unix socket among them
}

// gather looks them up, for a command as it is found by workers.
func (r intent) gather(setting supervisor.Setting, command []string, passed bool) facts {
	f := facts{passed: passed, noProc: checkProc()}
	command = setting.Located(command)
	if r.link == linkAuto || r.link == linkNode || r.engineIO {
		f.program = programs.ResolveIn(setting.Directory, command)
		f.server, f.known = f.program.Server()
	}
	if r.link == linkAuto {
		switch f.program.Kind {
		case programs.Node:
			f.project, f.masterCall = nodeipc.FindProject(f.program.Script), nodeipc.NamesMaster(f.program.Script)
		case programs.Other:
			f.mailbox = namesMailbox(setting, command) || namesMailbox(setting, f.program.Args)
		}
	}
	if r.mayBind(f) {
		f.noBind = checkBind()
	}
	if r.mayInject(f) {
		f.noInjection = checkInjection()
	}
	if r.workers > reuseport.MaxSlots && r.route != routeMaster {
		f.noEBPF = r.ebpf.check(r.workers)
	}
	if r.slotAddress.IsValid() && !r.freebind {
		f.noSlotAddress = checkSlotAddresses(r.slotAddress, r.workers)
	}
	return f
}

// mayBind tells whether a worker may be given a listener when it binds.
func (r intent) mayBind(f facts) bool {
	return r.noListeners(r.notKernel(f)) == nil && r.mayListen(f)
}

// mayListen tells whether a worker may be one that listens by itself.
func (r intent) mayListen(f facts) bool {
	return r.link == linkAny || r.link == linkAuto && !f.mailbox && f.program.Kind != programs.Node && f.program.Kind != programs.NodeWithoutScript
}

// mayInject tells whether a worker may be given connections when it accepts.
func (r intent) mayInject(f facts) bool {
	return r.route != routeKernel && r.noListeners(r.notKernel(f)) != nil && r.mayListen(f)
}

// errNoProc: workers of links any and activation cannot be started, nor seen to be ready.
var errNoProc = errors.New("there is no /proc, by which workers are started and seen to be ready: mount it (mount -t proc proc /proc), or use --worker-link node, or native with a program that knows handfast")

// checkProc returns errNoProc where that is so.
func checkProc() error {
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return errNoProc
	}
	return nil
}

// checkBind says why a server cannot be given a listener when it binds.
func checkBind() error {
	if err := checkProc(); err != nil {
		return err
	}
	return bindswap.Check()
}

// checkInjection says why a server cannot be given connections when it accepts.
func checkInjection() error {
	if err := checkProc(); err != nil {
		return err
	}
	return acceptinject.Check()
}

// checkSlotAddresses says which of slots' own addresses this machine does not have.
func checkSlotAddresses(own hash.SlotAddresses, slots int) error {
	for slot := range slots {
		if !isHere(own.Of(slot)) {
			return fmt.Errorf("--slot-address %v: this machine does not have slot %d's address %v: as root, ip route add local %[1]v dev lo, or take a part of 127.0.0.0/8", own, slot, own.Of(slot))
		}
	}
	return nil
}

// isHere tells whether what is sent to an address comes to this machine, as far as can be seen.
func isHere(addr netip.Addr) bool {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err == nil {
		ln.Close()
	}
	return !errors.Is(err, unix.EADDRNOTAVAIL) || addr.Is6() && isRoutedHere(addr)
}

// isRoutedHere tells whether a route to an IPv6 address ends at this machine's loopback interface: such a route is enough for connections,
// but not for bind, as it is with IPv4 (ipv6_chk_addr in net/ipv6/af_inet6.c). It sends nothing.
func isRoutedHere(addr netip.Addr) bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return sock.BindToLoopback(fd) == nil && unix.Connect(fd, &unix.SockaddrInet6{Addr: addr.As16(), Port: 9}) == nil
}

// maxProgram is how much of a program, or of a script that it runs, is looked at.
const maxProgram = 256 << 20

// namesMailbox tells whether a worker's program, or a file among its arguments, contains
// the name of the variable by which workers find their mailbox: as programs with package
// worker do, and scripts that follow fdpass/doc.go.
func namesMailbox(setting supervisor.Setting, command []string) bool {
	if len(command) == 0 {
		return false
	}
	if path, err := setting.Find(command[0]); err == nil && fileContains(path, []byte(fdpass.EnvFD)) {
		return true
	}
	for _, arg := range command[1:] {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(setting.Directory, arg)
		}
		if fileContains(arg, []byte(fdpass.EnvFD)) {
			return true
		}
	}
	return false
}

// fileContains is false for what is no ordinary file.
func fileContains(path string, text []byte) bool {
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	limited := io.LimitReader(file, maxProgram)
	buffer := make([]byte, 1<<20)
	kept := 0 // from the last read, in case text is cut
	for {
		n, err := limited.Read(buffer[kept:])
		if bytes.Contains(buffer[:kept+n], text) {
			return true
		}
		if err != nil {
			return false
		}
		end := kept + n
		kept = min(len(text)-1, end)
		copy(buffer, buffer[end-kept:end])
	}
}
