package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/programs"
)

// decideLink decides how workers get connections. notKernel is why the kernel cannot give clients to
// slots.
func (r intent) decideLink(f facts, notKernel error) (d decision, err error) {
	noListeners := r.noListeners(notKernel)
	if r.link == linkAuto {
		return r.chooseLink(f, noListeners)
	}
	d.link, d.dialect, d.readyWhen = r.link.kind, r.link.dialect, r.readyWhen
	if err := r.fits(d.link); err != nil {
		return d, err
	}
	switch {
	case r.link == linkNode:
		d.warnOfStarter(f)
	case r.link == linkStickySession:
		d.readyOnceStarted() // its workers do not say it
	case r.link == linkAny && noListeners != nil:
		return d, r.decideInjection(&d, f, noListeners)
	case r.link == linkAny:
		return d, f.noBind
	case !d.link.TakesConnections() && noListeners != nil:
		remedies := append(r.remedies(f), "--worker-link native", "--worker-link node")
		return d, usagef("--worker-link %v: its workers accept from a listener of their own, and %w; use %s", r.link, noListeners, or(remedies))
	case d.link.Foreign():
		return d, f.noProc
	}
	return d, nil
}

// noListeners says why workers cannot be given listeners of their own; nil: they can.
func (r intent) noListeners(notKernel error) error {
	switch {
	case r.route == routeMaster:
		return errors.New("with --route master the master hands connections off")
	case notKernel != nil:
		return fmt.Errorf("the kernel cannot route: %w", notKernel) // tooManySlots among others
	case r.nextWhenDown:
		return errors.New("with --when-down next connections are handed off")
	}
	return nil
}

// decideInjection is --worker-link any where workers cannot be given listeners: they are handed
// connections in answer to accept.
func (r intent) decideInjection(d *decision, f facts, noListeners error) error {
	tooMany, isTooMany := errors.AsType[tooManySlots](noListeners)
	switch {
	case isTooMany && r.route == routeAuto:
		return usagef("--worker-link any: %w", tooMany)
	case r.route == routeKernel:
		return usagef("--when-down next: with --route kernel workers of --worker-link any cannot be handed the clients of another slot; use --worker-link native or node, or --when-down wait")
	}
	d.link = master.LinkInject
	d.noteInjection()
	return f.noInjection
}

// noteInjection says what it means that workers are handed connections in answer to accept.
func (d *decision) noteInjection() {
	d.note("connections are handed to workers in answer to accept, since the master gives clients to slots",
		"when_the_master_dies", "workers cannot accept any more", "cost", "more of the master's CPU time for each connection than with other links")
}

// injection is what is chosen for nobody, where workers cannot be given listeners and it would do.
func (r intent) injection(noListeners error) string {
	if _, tooMany := errors.AsType[tooManySlots](noListeners); noListeners == nil || r.route == routeKernel || tooMany && r.route == routeAuto {
		return ""
	}
	return "--worker-link any"
}

// remedies are what to ask for so that workers can be served that cannot be given listeners now.
func (r intent) remedies(f facts) (all []string) {
	noListeners := func(r intent) error { return r.noListeners(r.notKernel(f)) }
	auto, wait := r, r
	auto.route, wait.nextWhenDown = routeAuto, false
	if r.route == routeMaster && noListeners(auto) == nil {
		all = append(all, "--route auto")
	}
	if r.nextWhenDown && noListeners(wait) == nil {
		all = append(all, "--when-down wait")
	}
	if injection := r.injection(noListeners(r)); injection != "" {
		all = append(all, injection)
	}
	return all
}

// chooseLink is --worker-link auto.
func (r intent) chooseLink(f facts, noListeners error) (d decision, err error) {
	c, err := r.choose(f, noListeners)
	if err == nil {
		err = r.fits(c.link)
	}
	if err != nil {
		return d, err
	}
	d.link, d.why, d.readyWhen = c.link, c.why, r.readyWhen
	fields := []any{"link", d.link.String(), "reason", d.why, "change_with", "--worker-link"}
	if c.otherwise != "" {
		fields = append(fields, "otherwise", c.otherwise)
	}
	d.note(linkChosen, fields...)
	if d.link == master.LinkInject {
		d.noteInjection()
	}
	if f.program.Kind == programs.Node {
		d.followProject(f)
	}
	return d, nil
}

// choice is how workers get connections, why, and what else there is.
type choice struct {
	link      master.LinkKind
	why       string
	otherwise string
}

// choose decides by the command.
func (r intent) choose(f facts, noListeners error) (choice, error) {
	why := f.program.Why
	cannot := cmp.Or(noListeners, f.noBind)
	switch kind := f.program.Kind; {
	case kind == programs.NodeWithoutScript:
		return choice{}, usagef("%s: name a script", why)
	case kind == programs.Node:
		return choice{link: master.LinkNode, why: why}, nil
	case kind != programs.Other && cannot == nil:
		return choice{master.LinkAny, why, "run node itself, and it gets connections by its channel"}, nil
	case kind == programs.NodeTool:
		return choice{link: master.LinkNode, why: "the command is Node, and gets single connections only by its channel (" + withoutRemedy(cannot) + ")"}, nil
	case kind == programs.NodeStarter:
		if err := r.fits(master.LinkAny); err != nil {
			return choice{}, err
		}
		remedy := f.runNodeItself()
		if others := r.remedies(f); len(others) > 0 {
			remedy += "; or use " + or(others)
		}
		return choice{}, usagef("%s, by which its workers would have to be served: %w; %s", why, cannot, remedy)
	case f.mailbox:
		return choice{link: master.LinkNative, why: "the command names HANDFAST_FD"}, nil
	case noListeners != nil:
		return r.chooseWithoutListeners(f, noListeners)
	default:
		return chooseForServer(f)
	}
}

// chooseForServer decides for what neither is Node nor names HANDFAST_FD.
func chooseForServer(f facts) (choice, error) {
	switch {
	case f.noBind == nil:
		return choice{link: master.LinkAny, why: "the command neither is Node nor names HANDFAST_FD"}, nil
	case errors.Is(f.noBind, errNoProc):
		return choice{}, f.noBind
	case f.server.Inherits != "":
		return choice{link: master.LinkActivation, why: f.server.Name + " takes inherited listeners by " + f.server.Inherits + "; it cannot be given one when it binds: " + withoutRemedy(f.noBind)}, nil
	default:
		return choice{}, fmt.Errorf("%w; if the command knows handfast use --worker-link native", f.noBind)
	}
}

// chooseWithoutListeners decides for the same where workers cannot be given listeners.
func (r intent) chooseWithoutListeners(f facts, noListeners error) (choice, error) {
	tooMany, isTooMany := errors.AsType[tooManySlots](noListeners)
	switch {
	case isTooMany:
		return choice{}, usagef("--workers %d: %w; if the command knows handfast use --worker-link native", tooMany.slots, tooMany)
	}
	unfit := r.fits(master.LinkAny)
	if unfit == nil && r.injection(noListeners) != "" {
		unfit = f.noInjection
	}
	switch {
	case unfit == nil && r.injection(noListeners) != "":
		return choice{link: master.LinkInject, why: "the command neither is Node nor names HANDFAST_FD, and " + noListeners.Error()}, nil
	case !f.known:
		return choice{link: master.LinkNative, why: "the command has to know handfast, since " + cmp.Or(unfit, noListeners).Error()}, nil
	case unfit != nil:
		return choice{}, unfit
	}
	return choice{}, usagef("%s knows nothing of handfast, and cannot be given listeners (%w); use %s", f.server.Name, noListeners, or(r.remedies(f)))
}

// withoutRemedy is the text of an error without what it advises.
func withoutRemedy(err error) string {
	text, _, _ := strings.Cut(err.Error(), "; without it")
	return logging.WithoutPackages(text)
}

// runNodeItself says what to run in place of a starter.
func (f facts) runNodeItself() string {
	if f.program.Instead == nil {
		return "run node itself (-- node SCRIPT)"
	}
	return "run node itself: -- " + quoteCommand(f.program.Instead)
}

// quoteCommand writes a command as one would type it.
func quoteCommand(command []string) string {
	var words []string
	for _, word := range command {
		if word == "" || strings.ContainsAny(word, " \t\n'\"\\$`&|;<>()*?[]#~!{}") {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// readyOnceStarted: workers do not say when they are ready.
func (d *decision) readyOnceStarted() {
	if d.readyWhen == nodeipc.ReadyAuto {
		d.readyWhen = nodeipc.ReadyStarted
	}
}

// followProject does as the module wants that a Node script is written for.
func (d *decision) followProject(f facts) {
	d.dialect = f.project.Dialect()
	if module := f.project.Silent(); module != "" {
		d.readyOnceStarted()
		d.note("workers are written for a sticky balancer: unless they listen they get connections by its message",
			"module", module, "because", "the script names it and "+f.project.Path+" depends on it", "otherwise", "--worker-link node --ready-when listening")
	}
	if f.masterCall != "" {
		d.warn("the script runs workers of its own: as a worker it has none, and its clients are refused", "script", f.program.Script, "because", "it calls "+f.masterCall,
			"remedy", "run the script of its workers, which handfast then starts in its place; or --worker-link any, and each slot has a master and its workers")
	}
}

// warnOfStarter: a command for which --worker-link node was asked does not get the channel.
func (d *decision) warnOfStarter(f facts) {
	if slices.Contains([]programs.Kind{programs.NodeStarter, programs.NodeWithoutScript}, f.program.Kind) {
		d.warn("workers will not hear Node's channel", "reason", f.program.Why, "remedy", f.runNodeItself()+", or --worker-link any")
	}
}
