package main

import (
	"context"
	"errors"
	routing "github.com/handfast/handfast/master/balancer"
	"net"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/link/acceptinject"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/systemd"
)

// plan is what was asked for of two questions: who gives clients to slots (--route), and how
// workers get connections (--worker-link).
type plan struct {
	route route
	link  link
	opens opener
}

// route is a value of --route.
type route int

const (
	routeAuto   route = iota // the kernel if it can, else the master
	routeMaster              // the master accepts and hands off
	routeKernel              // the kernel, to a listener for each slot
)

// link is a value of --worker-link.
type link int

const (
	linkAuto link = iota // what the command needs
	linkNative
	linkNode
	linkStickySession // node, with that module's message
	linkActivation
	linkAny
)

// The words for them.
var (
	routeWords = []string{"auto", "master", "kernel"}
	linkWords  = []string{"auto", "native", "node", "sticky-session", "activation", "any"}
)

// settle answers both, and opens what the master listens on: what a service manager passed
// and what the addresses name; if that is nothing, the default. A program that takes the place of
// another (before is not nil) goes on with what that listened on.
func (p plan) settle(ctx context.Context, config *master.Config, addresses []string, before *predecessor) (on listening, err error) {
	if before == nil {
		config.Listeners, err = systemd.Inherited()
	}
	if err != nil {
		return on, err
	}
	on.passed = len(config.Listeners) > 0 || before != nil && before.Passed
	command := config.Supervisor.Command
	config.Supervisor.Command = config.Supervisor.Setting.Located(command)
	kernel, cannot, err := p.decide(config, kernelCannot(config, on.passed))
	config.Supervisor.Command = command
	if err != nil {
		closeAll(config.Listeners)
		return on, err
	}
	switch {
	case on.passed || len(addresses) > 0:
	case config.Link == master.LinkAny:
		config.Follow = true // the port that the server binds is the one that the world sees
	default:
		addresses = []string{defaultListen}
	}
	on.addresses = addresses
	if before != nil {
		return on, before.listen(ctx, config, p.opens, addresses, kernel, cannot)
	}
	if config.Follow {
		config.Logger.Info("handfast listens where the first worker does, since --listen was left out")
		return on, nil
	}
	if kernel != never {
		err := p.opens.groups(ctx, config, addresses)
		if err == nil || kernel == must || isAddressError(err) {
			return on, err
		}
		cannot = err
	}
	if cannot != nil {
		config.Logger.Info("the master gives clients to slots", "why", "the kernel cannot: "+cannot.Error())
	}
	return on, p.opens.listeners(ctx, config, addresses)
}

// listening is what the master listens on.
type listening struct {
	addresses []string // as they were asked for
	passed    bool     // and what a service manager has opened
}

// kernelRoutes tells whether the kernel is to give clients to slots.
type kernelRoutes int

const (
	never kernelRoutes = iota
	may
	must
)

// decide settles the link, and whether the kernel routes. cannot is why it cannot, and what is
// returned as cannot, why it does not although nobody said so.
func (p plan) decide(config *master.Config, cannot error) (kernelRoutes, error, error) {
	if err := p.settleLink(config, cannot); err != nil {
		return never, nil, err
	}
	if config.Link != master.LinkNode && config.ReadyWhen != nodeipc.ReadyAuto {
		return never, nil, usagef("--ready-when %s: only Node workers are so, and these get connections by --worker-link %v", readyWords[config.ReadyWhen], config.Link)
	}
	if err := mailboxNeeded(config); err != nil {
		return never, nil, err
	}
	listensItself := config.Link == master.LinkActivation || config.Link == master.LinkAny
	switch {
	case p.route == routeMaster, config.Link == master.LinkInject:
		return never, nil, nil
	case p.route == routeKernel && cannot != nil:
		return never, nil, usagef("--route kernel: %w; use --route master", cannot)
	case p.route == routeKernel, listensItself:
		return must, nil, nil
	case cannot == nil && config.Balancer.WhenDown == routing.Next:
		return never, errors.New("with --when-down next it would leave clients with a stalled worker"), nil
	case cannot == nil:
		return may, nil, nil
	default:
		return never, cannot, nil
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

// kernelCannot says why the kernel cannot give clients to slots. passed: a service manager has
// opened the listeners.
func kernelCannot(config *master.Config, passed bool) error {
	clients := &config.Balancer.Clients
	switch {
	case clients.Rules.Header != "":
		return errors.New("with --behind-proxy clients are named by headers, which come too late for it")
	case clients.ProxyProtocol:
		return errors.New("with --proxy-protocol clients are named by what they send, which comes too late for it")
	case config.AccessLog != nil:
		return errors.New("with --access-log each connection is logged by the master, which has to accept it")
	case config.MaxConnections > 0:
		return errors.New("with --max-connections-per-slot further clients are refused by the master, which has to accept them")
	case passed:
		return errors.New("what a service manager passed is one listener, not one for each slot")
	case config.Supervisor.Workers > reuseport.MaxSlots:
		return tooManySlots{config.Supervisor.Workers}
	}
	return nil
}

// mailboxNeeded says what was asked for that only workers with a mailbox can do.
func mailboxNeeded(config *master.Config) error {
	link := config.Link.String()
	if config.Link == master.LinkNative {
		return nil
	}
	if n := config.MaxConnections; n > 0 {
		return usagef("--max-connections-per-slot %d: workers of --worker-link %s do not say how many connections they have open; limit them in the server itself (server.maxConnections in Node), or use --worker-link native with a program that reports them (package worker, examples/python)", n, link)
	}
	if d := config.Supervisor.Watchdog; d > 0 {
		return usagef("--watchdog %v: workers of --worker-link %s cannot be asked whether they are there; use --worker-link native with a program that answers (package worker, examples/python)", d, link)
	}
	return nil
}

// settleLink decides how workers get connections, and logs why when that was left to it.
// cannot is why the kernel cannot route.
func (p plan) settleLink(config *master.Config, cannot error) error {
	switch p.link {
	case linkNative:
		return nil
	case linkNode:
		config.Link = master.LinkNode
		warnStarter(config)
		return nil
	case linkStickySession:
		config.Link, config.Dialect = master.LinkNode, nodeipc.StickySession
		if config.ReadyWhen == nodeipc.ReadyAuto {
			config.ReadyWhen = nodeipc.ReadyStarted // its workers do not say it
		}
		return nil
	case linkActivation:
		if err := checkProc(); err != nil {
			return err
		}
		config.Link = master.LinkActivation
	case linkAny:
		if _, tooMany := errors.AsType[tooManySlots](cannot); tooMany && p.route == routeAuto {
			return usagef("--worker-link any: %w", cannot)
		}
		if p.route != routeKernel && (p.route == routeMaster || cannot != nil || config.Balancer.WhenDown == routing.Next) {
			return injects(config)
		}
		if err := checkFilter(); err != nil {
			return err
		}
		config.Link = master.LinkAny
	default:
		return p.chooseLink(config, cannot)
	}
	what := "--worker-link " + linkWords[p.link] + ": its workers take a listener, which needs --route kernel"
	switch {
	case p.route == routeMaster:
		return usagef("%s; with --route master use native or node", what)
	case cannot != nil:
		return usagef("%s, and %w; use native or node", what, cannot)
	case config.Balancer.WhenDown == routing.Next:
		return usagef("--when-down next: workers of --worker-link %s cannot be handed the clients of another slot; use native or node", linkWords[p.link])
	}
	return nil
}

// injects has servers that listen by themselves handed connections, where the kernel does not give
// clients to slots.
func injects(config *master.Config) error {
	if err := checkProc(); err != nil {
		return err
	}
	if err := acceptinject.Check(); err != nil {
		return err
	}
	config.Link = master.LinkInject
	config.Logger.Warn("--worker-link any where the master gives clients to slots is experimental: connections are handed to workers in answer to accept",
		"when the master dies", "workers cannot accept any more", "cost", "more of the master's CPU time for each connection than with other links")
	return nil
}

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		ln.Close()
	}
}
