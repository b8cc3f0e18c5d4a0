package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/metrics"
	"github.com/handfast/handfast/master/reexec"
)

// part is where a bundle has what the command saves.
var part = reexec.Part{Name: "command", Version: 1}

// predecessor is the program whose place this one takes, as far as the command is concerned.
type predecessor struct {
	bundle *reexec.Bundle
	Listen map[string]string // --listen, and the address that became of it
	Passed bool              // a service manager had passed the listeners
	Socket string            `json:",omitempty"` // of which the first Unix socket is at this path
	Admin  []savedAdmin

	Log, Access savedLines
}

type savedAdmin struct {
	Asked, At admin.Address
	FD        int
	ByName    bool // nobody has asked for it
}

// byName returns the address of the socket that stands for the name, if there is one.
func (p *predecessor) byName() (admin.Address, bool) {
	if p == nil {
		return admin.Address{}, false
	}
	for _, s := range p.Admin {
		if s.ByName {
			return s.Asked, true
		}
	}
	return admin.Address{}, false
}

// inherited returns the predecessor, if there is one.
func inherited() (*predecessor, error) {
	bundle, err := reexec.Inherited()
	if bundle == nil || err != nil {
		return nil, err
	}
	p := &predecessor{bundle: bundle}
	// The manager passed them to the program before: these numbers mean something else now.
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	return p, bundle.Get(part, p)
}

// orAgain returns why the program cannot begin. If it takes another's place, whose workers and clients it would leave alone,
// it is run anew instead: what was tried in a dry run fails for want of something that may be there again.
func (p *predecessor) orAgain(why error, log hclog.Logger, lines *logging.Queue) error {
	if p == nil {
		return why
	}
	program, err := thisProgram()
	if err != nil {
		return errors.Join(why, err)
	}
	return errors.Join(why, p.bundle.Again(program, func(try, of int) {
		log.Error("upgraded, and cannot begin: trying again", "err", why, "try", try, "of", of)
		lines.Flush()
	}))
}

// sockets returns the admin sockets.
func (p *predecessor) sockets() (lns map[admin.Address]net.Listener, err error) {
	if p == nil {
		return nil, nil
	}
	lns = make(map[admin.Address]net.Listener)
	for _, s := range p.Admin {
		file, err := p.bundle.Take(s.FD, "admin socket")
		if err != nil {
			return nil, err
		}
		if lns[s.Asked], err = admin.Adopt(file, s.At, !p.bundle.IsDryRun()); err != nil {
			return nil, err
		}
	}
	return lns, nil
}

// errOtherwise begins what an upgrade cannot change.
var errOtherwise = errors.New("an upgrade cannot change that; stop it and start it anew")

// listen goes on with the listeners, and opens those of further addresses. d is what the
// configuration comes to now.
func (p *predecessor) listen(ctx context.Context, config *master.Config, opens opener, d decision) error {
	if err := config.Adopt(p.bundle); err != nil {
		return err
	}
	link, kernelRouted := config.Adopted()
	switch {
	case link != d.link:
		return fmt.Errorf("workers get connections by --worker-link %v, and now it would be %v: %w", link, d.link, errOtherwise)
	case kernelRouted && d.notKernel != nil:
		return fmt.Errorf("the kernel gives clients to slots, and now it could not: %w: %w", d.notKernel, errOtherwise)
	case kernelRouted && d.route == routeMaster:
		return fmt.Errorf("the kernel gives clients to slots, and now the master would: %w", errOtherwise)
	case !kernelRouted && d.route == routeKernel && !d.fallback:
		return fmt.Errorf("the master gives clients to slots, and now the kernel would: %w", errOtherwise)
	}
	if err := p.sameLoopback(d.listen); err != nil {
		return err
	}
	var more, fewer []string
	for _, address := range d.listen {
		if _, ok := p.Listen[address]; !ok {
			more = append(more, address)
		}
	}
	for address, at := range p.Listen {
		if !slices.Contains(d.listen, address) {
			fewer = append(fewer, address)
			config.Retire(at)
		}
	}
	for _, address := range more {
		path := pathOfSocket(address)
		if i := slices.IndexFunc(fewer, func(other string) bool { return path != "" && pathOfSocket(other) == path }); i >= 0 {
			return fmt.Errorf("--listen: from %s to %s: %w", fewer[i], address, errOtherwise)
		}
	}
	if kernelRouted && len(more)+len(fewer) > 0 {
		return fmt.Errorf("--listen: with --route kernel, from %s to %s: %w", names(p.Listen), strings.Join(d.listen, ", "), errOtherwise)
	}
	return opens.listeners(ctx, config, more)
}

// sameLoopback tells whether none of the addresses would become the whole loopback interface, or was that.
func (p *predecessor) sameLoopback(listen []string) error {
	for _, address := range listen {
		at, whole := strings.CutPrefix(address, wholeLoopback)
		before, from, to := wholeLoopback+at, "all addresses of the loopback interface", "this one alone"
		if whole {
			before, from, to = at, to, from
		}
		if _, ok := p.Listen[before]; ok && p.Listen[address] == "" {
			return fmt.Errorf("--slot-address: what --listen %s listens on would change from %s to %s: %w", at, from, to, errOtherwise)
		}
	}
	return nil
}

func names(addresses map[string]string) string {
	var all []string
	for address := range addresses {
		all = append(all, address)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// successor is the program that takes this one's place, when it is asked to.
type successor struct {
	master  *master.Master
	program reexec.Program
	listen  map[string]string
	passed  bool
	socket  string
	sockets []net.Listener
	lines   *logging.Queue
	access  accessLog
	counts  *metrics.Metrics
	log     hclog.Logger
}

// newSuccessor notes what the master listens on. Call it before that has its listeners.
func newSuccessor(config *master.Config, on listening, before *predecessor, sockets []net.Listener, lines *logging.Queue, access accessLog) *successor {
	addresses := on.addresses
	s := &successor{listen: make(map[string]string), passed: on.passed, socket: on.socket, sockets: sockets, lines: lines, access: access, log: config.Logger.Named("upgrade")}
	var opened []string
	for _, ln := range config.Listeners {
		opened = append(opened, ln.Addr().String())
	}
	for _, g := range config.Groups {
		opened = append(opened, g.Addr().String())
	}
	if before != nil {
		for address, at := range before.Listen {
			if slices.Contains(addresses, address) {
				s.listen[address] = at
				opened = slices.DeleteFunc(opened, func(other string) bool { return other == at })
			}
		}
		addresses = slices.DeleteFunc(slices.Clone(addresses), func(address string) bool { return s.listen[address] != "" })
	}
	// The new ones come last, in the order in which they were named.
	for i, address := range addresses {
		s.listen[address] = opened[len(opened)-len(addresses)+i]
	}
	return s
}

// save puts into a bundle what the command of the next program needs.
func (s *successor) save(b *reexec.Bundle) error {
	p := predecessor{Listen: s.listen, Passed: s.passed, Socket: s.socket, Log: saveLines(s.lines), Access: saveLines(s.access.Queue)}
	for _, ln := range s.sockets {
		socket := ln.(adminSocket)
		at := socket.Addr()
		p.Admin = append(p.Admin, savedAdmin{socket.asked, admin.Address{Network: at.Network(), Address: at.String()}, b.KeepFile(socket.Listener.(syscall.Conn)), socket.byName})
	}
	if err := s.counts.Save(b); err != nil {
		return err
	}
	return b.Put(part, p)
}

// take replaces this program, and returns only if that failed. before is called in between, when
// the next one has shown that it comes up.
func (s *successor) take(ctx context.Context, before func()) error {
	s.log.Info("trying the new program", "path", s.program.Path)
	err := s.master.Replace(ctx, s.program, s.save, func() {
		s.lines.Flush()
		s.access.flush()
		before()
	})
	if err != nil {
		s.log.Error("not upgraded, this program goes on", "err", err)
	}
	return err
}

// thisProgram is what to run in order to run this program, or what has been put in its place since.
func thisProgram() (reexec.Program, error) {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		if path, err = os.Executable(); err != nil {
			return reexec.Program{}, fmt.Errorf("where is this program? %w", err)
		}
	}
	return reexec.Program{Path: path, Args: os.Args, Env: os.Environ()}, nil
}

func upgradeCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "upgrade",
		Usage: "replace the running master by the program and the configuration that are there now",
		Description: "Runs the file that the master was started from, with the same arguments and the configuration\n" +
			"file as it is now, in the same process. Listeners, workers with their connections, and what is\n" +
			"parked stay. The new program is tried first; if it does not come up, the old one goes on, and\n" +
			"the exit status is 1. Workers are not restarted: that is what reload is for.",
	}, func(c *cli.Context, m *admin.Client) error {
		began := time.Now()
		before, after, err := m.Upgrade(c.Context)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "upgraded: %s to %s, after %s\n", before, after, time.Since(began).Round(10*time.Millisecond))
		return nil
	})
}
