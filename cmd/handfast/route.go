package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/steer"
)

// route says who gives clients to slots.
type route int

// The values of --route.
const (
	routeAuto   route = iota // the kernel if it can, else the master
	routeMaster              // the master accepts and hands off
	routeKernel              // the kernel, to a listener for each slot
)

// open opens what a master listens on: what a service manager passed and what the
// addresses name; if that is nothing, the default.
func (r route) open(ctx context.Context, config *master.Config, addresses []string) error {
	inherited, err := master.Inherited()
	if err != nil {
		return err
	}
	config.Listeners = inherited
	if len(inherited)+len(addresses) == 0 {
		addresses = []string{defaultListen}
	}
	if r != routeMaster {
		why := kernelCannot(config)
		if why == nil {
			return openGroups(ctx, config, addresses)
		}
		if r == routeKernel {
			closeAll(inherited)
			return usagef("--route kernel: %w; use --route master", why)
		}
		config.Logger.Info("the master gives clients to slots", "why", "the kernel cannot: "+why.Error())
	}
	return openListeners(ctx, config, addresses)
}

// kernelCannot says why the kernel cannot give clients to slots.
func kernelCannot(config *master.Config) error {
	clients := &config.Balancer.Clients
	switch {
	case clients.Rules.Header != "":
		return errors.New("with --behind-proxy clients are named by headers, which come too late for it")
	case clients.ProxyProtocol:
		return errors.New("with --proxy-protocol clients are named by what they send, which comes too late for it")
	case len(config.Listeners) > 0:
		return errors.New("what a service manager passed is one listener, not one for each slot")
	case config.Supervisor.Workers > steer.MaxSlots:
		return fmt.Errorf("%d slots are more than the %d that its program can tell apart", config.Supervisor.Workers, steer.MaxSlots)
	}
	return nil
}

func openGroups(ctx context.Context, config *master.Config, addresses []string) error {
	for _, address := range addresses {
		g, err := steer.Listen(ctx, address, config.Balancer.Clients.Hash, config.Supervisor.Workers)
		if err != nil {
			for _, g := range config.Groups {
				g.Close()
			}
			return err
		}
		config.Groups = append(config.Groups, g)
	}
	return nil
}

func openListeners(ctx context.Context, config *master.Config, addresses []string) error {
	for _, address := range addresses {
		ln, err := master.Listen(ctx, address)
		if err != nil {
			closeAll(config.Listeners)
			return err
		}
		config.Listeners = append(config.Listeners, ln)
	}
	return nil
}

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		ln.Close()
	}
}
