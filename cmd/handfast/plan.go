package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reuseport"
)

// The plan of `handfast run` is made in three steps:
//
//  1. gather (facts.go) looks at the command, the machine and the environment.
//  2. decide (this file; choose.go for the link) answers from what was asked for and from these facts
//     who gives clients to slots (--route), and how workers get connections (--worker-link). It
//     touches nothing.
//  3. open (listen.go) opens what the master listens on.
//
// `handfast check` takes the first two steps, and tries the third.

// route is a value of --route.
type route int

const (
	routeAuto   route = iota // the kernel if it can, else the master
	routeMaster              // the master accepts and hands off
	routeKernel              // the kernel, to a listener for each slot
)

// link is a value of --worker-link.
type link struct {
	given   bool // else auto: what the command needs
	kind    master.LinkKind
	dialect nodeipc.Dialect // of link node
}

// Those that the plan names. links has all.
var (
	linkAuto          = link{}
	linkNode          = link{given: true, kind: master.LinkNode}
	linkStickySession = link{given: true, kind: master.LinkNode, dialect: nodeipc.StickySession}
	linkAny           = link{given: true, kind: master.LinkAny}
)

// links are the values of --worker-link: auto, one for each kind of link that has a word of its own, and
// sticky-session, which is node with that module's message.
var links = func() []link {
	all := []link{linkAuto}
	for _, kind := range master.LinkKinds() {
		l := link{given: true, kind: kind}
		if slices.ContainsFunc(all, func(other link) bool { return other.String() == l.String() }) {
			continue // the plan decides which of them: decideInjection
		}
		all = append(all, l)
		if l == linkNode {
			all = append(all, linkStickySession)
		}
	}
	return all
}()

// The words for them.
var (
	routeWords = []string{"auto", "master", "kernel"}
	linkWords  = func() (words []string) {
		for _, l := range links {
			words = append(words, l.String())
		}
		return words
	}()
)

func (r route) String() string { return routeWords[r] }

func (l link) String() string {
	switch {
	case !l.given:
		return "auto"
	case l == linkStickySession:
		return "sticky-session"
	}
	return l.kind.Flag()
}

// help says for which workers it is.
func (l link) help() string {
	switch {
	case !l.given:
		return "what COMMAND needs"
	case l == linkStickySession:
		return "Node workers of that module"
	}
	return l.kind.Help()
}

// linkHelp lists the values of --worker-link.
func linkHelp() string {
	var all []string
	for _, l := range links[1:] {
		all = append(all, fmt.Sprintf("%v (%s)", l, l.help()))
	}
	return fmt.Sprintf("%s, or %v: %s", strings.Join(all, ", "), linkAuto, linkAuto.help())
}

// intent is what was asked for, as far as the plan depends on it.
type intent struct {
	route          route
	link           link
	listen         []string // addresses; none: it was left out
	slotAddress    hash.SlotAddresses
	freebind       bool
	ebpf           ebpf
	workers        int
	readyWhen      nodeipc.ReadyWhen
	header         bool // --behind-proxy
	brought        bool // --session, or a --key that clients bring
	engineIO       bool // --session engine.io
	affinity       bool // --drain-affinity
	sessions       bool // --session
	sessionIdle    bool // --session-idle is given
	keep           bool // --hand-back=false
	proxyProtocol  bool
	leaveProxy     bool // --proxy-protocol-mode leave
	accessLog      bool
	nextWhenDown   bool // --when-down next
	maxConnections int
}

const (
	linkChosen = "worker link chosen" // how workers get connections, and why: a remark of each plan
	askedFor   = "asked for"          // is the reason of what a flag says
)

// decision is the plan.
type decision struct {
	route    route // routeMaster or routeKernel
	fallback bool  // the master gives clients to slots if the kernel turns out not to be able to

	// notKernel is why the master gives clients to slots where --route auto was asked for; nil: it
	// does not, or its link is for the master alone.
	notKernel error
	routeWhy  string // the route was chosen, unless notKernel says it

	link      master.LinkKind
	why       string            // the link was chosen; empty: it was asked for
	dialect   nodeipc.Dialect   // of link node
	readyWhen nodeipc.ReadyWhen // likewise
	engineIO  bool              // sessions of Engine.IO name their worker, whether that was asked for or not

	listen  []string // addresses to open, beside those that a service manager has opened
	follow  bool     // handfast listens where the first worker does
	remarks []remark // for the log
}

// remark is something that goes with a decision: a line of the log.
type remark struct {
	warning bool
	message string
	fields  []any
}

// String is the remark on one line.
func (r remark) String() string {
	text := r.message
	for i := 0; i < len(r.fields); i += 2 {
		text += fmt.Sprintf("; %s: %v", strings.ReplaceAll(fmt.Sprint(r.fields[i]), "_", " "), r.fields[i+1])
	}
	return text
}

func (d *decision) note(message string, fields ...any) {
	d.remarks = append(d.remarks, remark{false, message, fields})
}

func (d *decision) warn(message string, fields ...any) {
	d.remarks = append(d.remarks, remark{true, message, fields})
}

// decide makes the plan. A usageError is a contradiction in what was asked for; another error is
// something that this machine lacks.
func (r intent) decide(f facts) (decision, error) {
	notKernel := r.notKernel(f)
	if r.route == routeKernel && notKernel != nil {
		if _, tooMany := errors.AsType[tooManySlots](notKernel); tooMany {
			return decision{}, usagef("--route kernel: %w, or --route master", notKernel)
		}
		return decision{}, usagef("--route kernel: %w; use --route master", notKernel)
	}
	d, err := r.decideLink(f, notKernel)
	if err != nil {
		return decision{}, err
	}
	if r.link != linkAuto {
		d.note(linkChosen, "link", d.link.String(), "reason", askedFor, "change_with", "--worker-link")
	}
	d.engineIO = r.namesEngineIO(f)
	if err := r.fitsSocket(&d, f); err != nil {
		return decision{}, err
	}
	r.decideRoute(&d, notKernel)
	r.adviseOnProxies(&d)
	r.adviseOnEngineIO(&d, f)
	if r.sessionIdle && !r.sessions {
		d.note("--session-idle has no effect: no request names a worker", "needs", "--session")
	}
	r.decideAddresses(&d, f)
	return d, r.decideSlotAddresses(&d, f)
}

// notKernel says why the kernel cannot give clients to slots.
func (r intent) notKernel(f facts) error {
	switch {
	case r.header:
		return errors.New("with --behind-proxy clients are named by headers, which come too late for it")
	case r.brought:
		return errors.New("with --session, or a --key other than address, clients are recognised by what they send, which comes too late for it")
	case r.namesEngineIO(f):
		return errors.New("with @socket.io/sticky requests go to the worker of the session that they name, which comes too late for it")
	case r.affinity:
		return errors.New("with --drain-affinity clients go to workers that are in no slot any more, of which it knows nothing")
	case r.proxyProtocol:
		return errors.New("with --proxy-protocol clients are named by what they send, which comes too late for it")
	case r.accessLog:
		return errors.New("with --access-log each connection is logged by the master, which has to accept it")
	case r.maxConnections > 0:
		return errors.New("with --max-connections-per-slot further clients are refused by the master, which has to accept them")
	case r.socket(f) != "":
		return errors.New("those who connect to a Unix socket have no address, by which it would tell clients apart")
	case f.passed:
		return errors.New("what a service manager passed is one listener, not one for each slot")
	case r.workers > reuseport.MaxSlots && f.noEBPF != nil:
		return tooManySlots{r.workers, f.noEBPF}
	}
	return nil
}

// namesEngineIO tells whether workers are written for @socket.io/sticky. They report their sessions, but later than they have answered:
// a request that comes before has to name its worker by itself.
func (r intent) namesEngineIO(f facts) bool {
	return r.link == linkAuto && r.route != routeKernel && f.project.ReportsSessions()
}

// tooManySlots is why the kernel cannot route if that is all. It says what would do.
type tooManySlots struct {
	slots  int
	noEBPF error
}

func (e tooManySlots) Error() string {
	return fmt.Sprintf("%d slots are more than the %[2]d that the kernel can tell apart without eBPF (%[3]s); use --workers %[2]d or fewer",
		e.slots, reuseport.MaxSlots, logging.WithoutPackages(e.noEBPF.Error()))
}

// fits says what was asked for that workers of a link cannot do.
func (r intent) fits(kind master.LinkKind) error {
	if r.readyWhen != nodeipc.ReadyAuto && !kind.Clustered() {
		return usagef("--ready-when %s: only Node workers say so, and these get connections by --worker-link %s; use --ready-when auto, or --worker-link node if the command is Node",
			readyWords[r.readyWhen], kind.Flag())
	}
	if r.maxConnections > 0 && !kind.Reports() {
		return usagef("--max-connections-per-slot %d: workers of --worker-link %s do not say how many connections they have open; limit them in the server itself (server.maxConnections in Node), or use --worker-link native with a program that reports them (package worker, examples/python)",
			r.maxConnections, kind.Flag())
	}
	return nil
}

// decideRoute decides who gives clients to slots, for workers whose link is decided.
func (r intent) decideRoute(d *decision, notKernel error) {
	d.route = routeMaster
	switch {
	case r.route == routeMaster:
		d.routeWhy = askedFor
	case !d.link.TakesListeners():
		d.routeWhy = r.noListeners(notKernel).Error() // else workers had a link that takes them
	case r.route == routeKernel:
		d.route, d.routeWhy = routeKernel, askedFor
	case !d.link.TakesConnections():
		d.route, d.routeWhy = routeKernel, "workers of --worker-link "+d.link.Flag()+" accept from listeners of their own"
	case notKernel != nil:
		d.notKernel = notKernel
	case r.nextWhenDown:
		d.notKernel = errors.New("with --when-down next it would leave clients with a stalled worker")
	default:
		d.route, d.fallback, d.routeWhy = routeKernel, true, "clients are told apart by address, which the kernel can do"
	}
}

// handsBack tells whether workers of a link hand connections back between two requests. Node would lose what a PROXY header said.
func (r intent) handsBack(link master.LinkKind) bool {
	return link.HandsBack() && !r.keep && !(link == master.LinkNode && r.proxyProtocol)
}

// adviseOnEngineIO says whose affair it is that ids of Engine.IO end in their worker's token: only Node workers get a module for that.
func (r intent) adviseOnEngineIO(d *decision, f facts) {
	const message = "ids of Engine.IO's sessions end in HANDFAST_ROUTE only if the program itself does that: with this link nothing is loaded into it"
	switch {
	case !r.engineIO || d.link == master.LinkNode:
	case f.program.Kind == programs.Other:
		d.note(message, "link", d.link.String(), "how", "examples/flask-socketio")
	default:
		d.warn(message, "link", d.link.String(), "remedy", "--worker-link node; "+f.runNodeItself())
	}
}

// adviseOnProxies says what the proxy must do, and who sees what a PROXY header names: only the native link has room for it.
func (r intent) adviseOnProxies(d *decision) {
	if (r.header || r.brought) && !r.handsBack(d.link) {
		d.note("the first request on a connection decides about the slot of all: it must be those of one client, or session", "link", d.link.String(),
			"behind_a_proxy", "turn off its pool of connections, or have it choose slots (--slot-address)")
	}
	switch native := d.link == master.LinkNative; {
	case r.leaveProxy:
		d.note("PROXY headers are left on connections: workers have to read them", "link", d.link.String(), "change_with", "--proxy-protocol-mode")
	case r.proxyProtocol && !native:
		d.note("workers see the proxy's address: the link has no room for the client's", "link", d.link.String(), "if_they_read_PROXY_headers_themselves", "--proxy-protocol-mode leave")
	}
}

// withoutKernel is the plan when the kernel turns out not to be able to give clients to slots.
func (d decision) withoutKernel(why error) decision {
	d.route, d.fallback, d.notKernel = routeMaster, false, why
	return d
}

// logRoute says who gives clients to slots, when that is certain.
func (d decision) logRoute(log hclog.Logger) {
	why := d.routeWhy
	if d.notKernel != nil {
		why = "the kernel cannot give clients to slots: " + d.notKernel.Error()
	}
	log.Info("route chosen", "route", d.route.String(), "reason", why, "change_with", "--route")
}

// decideAddresses decides where to listen.
func (r intent) decideAddresses(d *decision, f facts) {
	d.listen = r.listen
	switch {
	case f.passed || len(r.listen) > 0:
	case d.link.Follows():
		d.follow = true // the port that the server binds is the one that the world sees
		d.note("handfast listens where the first worker does", "change_with", "--listen")
	default:
		d.listen = []string{defaultListen}
	}
}

// decideSlotAddresses sees to it that slots' own addresses are listened on.
func (r intent) decideSlotAddresses(d *decision, f facts) error {
	own := r.slotAddress
	if !own.IsValid() {
		return nil
	}
	all, loopback := ":PORT or 0.0.0.0:PORT", "127.0.0.1:PORT"
	if own.Addr().Is6() {
		all, loopback = ":PORT or [::]:PORT", "[::1]:PORT"
	}
	d.listen = slices.Clone(d.listen)
	for i, address := range d.listen {
		if isLoopback(address, own) && !slices.ContainsFunc(r.listen, func(other string) bool { return other != address && port(other) == port(address) }) {
			d.listen[i] = wholeLoopback + address
			d.note("handfast listens on the whole loopback interface, for slots' own addresses", "slot_address", own.String(), "beside", address)
		}
	}
	switch {
	case f.passed:
		d.note("slots' addresses are listened on if the socket that the service manager passed is on all addresses", "slot_address", own.String())
	case d.follow:
		d.note("slots' addresses are listened on if the first worker listens on all addresses", "slot_address", own.String(), "change_with", "--listen "+all)
	case !slices.ContainsFunc(d.listen, func(address string) bool { return covers(address, own) }):
		return usagef("--slot-address %v: no --listen has the addresses of slots; use --listen %s, or %s for those who connect from this machine", own, all, loopback)
	}
	return f.noSlotAddress
}

// wholeLoopback begins what a plan says to listen on where that is not the loopback address which follows, but all
// addresses of the loopback interface.
const wholeLoopback = "lo/"

// covers tells whether what a plan says to listen on gets what comes to slots' own addresses.
func covers(address string, own hash.SlotAddresses) bool {
	host, _, _ := net.SplitHostPort(address)
	addr, err := netip.ParseAddr(host)
	return !isSocket(address) && host == "" || strings.HasPrefix(address, wholeLoopback) || err == nil && addr.IsUnspecified() && addr.Is4() == own.Addr().Is4()
}

// isLoopback tells whether an address is the loopback address, of the family that slots' own addresses are of.
func isLoopback(address string, own hash.SlotAddresses) bool {
	host, _, _ := net.SplitHostPort(address)
	if own.Addr().Is4() {
		return host == "127.0.0.1" || host == "localhost"
	}
	return host == "::1"
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// configure has a master do it.
func (d decision) configure(config *master.Config) {
	config.Link, config.Dialect, config.ReadyWhen, config.Follow = d.link, d.dialect, d.readyWhen, d.follow
	engineIO := forwarded.Key{Kind: forwarded.ByEngineIO}
	if rules := &config.Balancer.Clients.Rules; d.engineIO && len(rules.Sessions) < forwarded.MaxSessions && !slices.Contains(rules.Sessions, engineIO) {
		if len(rules.Sessions) == 0 {
			config.SessionIdle = 0 // those who report their sessions wait for the end of the last one
		}
		rules.Sessions = append(slices.Clone(rules.Sessions), engineIO)
	}
	for _, remark := range d.remarks {
		if remark.warning {
			config.Logger.Warn(remark.message, remark.fields...)
		} else {
			config.Logger.Info(remark.message, remark.fields...)
		}
	}
}
