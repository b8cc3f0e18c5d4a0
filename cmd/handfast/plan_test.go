package main

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reuseport"
	"github.com/handfast/handfast/master/supervisor"
)

// The kinds of commands that the plan tells apart.
var planCommands = map[string]facts{
	"node app.js":          {program: programs.Command{Kind: programs.Node, Why: "the command is Node", Script: "/app.js"}},
	"node master.js":       {program: programs.Command{Kind: programs.Node, Why: "the command is Node", Script: "/master.js"}, masterCall: "recluster()"},
	"node sticky.js":       {program: programs.Command{Kind: programs.Node, Why: "the command is Node", Script: "/sticky.js"}, project: nodeipc.Project{Path: "/package.json", StickySession: true}},
	"npm start":            {program: programs.Command{Kind: programs.NodeStarter, Why: "npm starts the program", Instead: []string{"node", "app.js"}}},
	"pm2":                  {program: programs.Command{Kind: programs.NodeStarter, Why: "pm2 starts the program"}},
	"tool":                 {program: programs.Command{Kind: programs.NodeTool, Why: "npm has installed the command"}},
	"node":                 {program: programs.Command{Kind: programs.NodeWithoutScript, Why: "Node without a script"}},
	"native":               {mailbox: true},
	"gunicorn":             {server: programs.Server{Name: "gunicorn", Inherits: "LISTEN_FDS"}, known: true},
	"uvicorn":              {server: programs.Server{Name: "uvicorn"}, known: true},
	"gunicorn for mailbox": {server: programs.Server{Name: "gunicorn", Inherits: "LISTEN_FDS"}, known: true, mailbox: true},
	"unknown":              {},
}

// Values of --worker-link that the plan need not name.
var (
	linkNative     = link{given: true, kind: master.LinkNative}
	linkActivation = link{given: true, kind: master.LinkActivation}
)

// machines are what a machine may lack.
var machines = map[string]facts{
	"all":          {},
	"no /proc":     {noProc: errNoProc, noBind: errNoProc, noInjection: errNoProc},
	"no bind":      {noBind: errors.New("EBUSY; without it use --worker-link activation")},
	"no eBPF":      {noEBPF: errNoRight},
	"no injection": {noInjection: errors.New("an old kernel; without it use --worker-link native")},
}

// on is a command on a machine.
func (f facts) on(machine facts, passed bool) facts {
	f.noProc, f.noBind, f.noInjection, f.noEBPF, f.passed = machine.noProc, machine.noBind, machine.noInjection, machine.noEBPF, passed
	return f
}

// planIntents are all combinations of what the plan depends on.
func planIntents() iter.Seq[intent] {
	return func(yield func(intent) bool) {
		for bits := range 1 << 7 {
			has := func(bit int) bool { return bits>>bit&1 == 1 }
			r := intent{workers: 2, header: has(0), proxyProtocol: has(1), accessLog: has(2), nextWhenDown: has(3)}
			if has(4) {
				r.maxConnections = 5
			}
			if has(5) {
				r.readyWhen = nodeipc.ReadyMessage
			}
			if has(6) {
				r.workers = reuseport.MaxSlots + 1
			}
			for i := range len(routeWords) * len(linkWords) {
				r.route, r.link = route(i%len(routeWords)), links[i/len(routeWords)]
				if !yield(r) {
					return
				}
			}
		}
	}
}

// flags are what somebody has typed for it.
func (r intent) flags() (all []string) {
	for _, f := range []struct {
		text  string
		given bool
	}{
		{"--route " + r.route.String(), r.route != routeAuto},
		{"--worker-link " + r.link.String(), r.link != linkAuto},
		{"--workers 129", r.workers > 2},
		{"--behind-proxy", r.header},
		{"--proxy-protocol", r.proxyProtocol},
		{"--proxy-protocol-mode leave", r.leaveProxy},
		{"--access-log FILE", r.accessLog},
		{"--when-down next", r.nextWhenDown},
		{"--max-connections-per-slot 5", r.maxConnections > 0},
		{"--ready-when message", r.readyWhen != nodeipc.ReadyAuto},
		{"--listen :80", len(r.listen) > 0},
	} {
		if f.given {
			all = append(all, f.text)
		}
	}
	return all
}

// with is the same, with another value of a flag.
func (r intent) with(t *testing.T, flag, value string) intent {
	switch flag {
	case "--route":
		r.route = route(slices.Index(routeWords, value))
	case "--worker-link":
		r.link = links[slices.Index(linkWords, value)]
	case "--when-down":
		r.nextWhenDown = value == "next"
	case "--ready-when":
		r.readyWhen = nodeipc.ReadyWhen(slices.Index(readyWords, value))
	case "--workers":
		r.workers = reuseport.MaxSlots
	default:
		t.Fatalf("%s is no remedy", flag)
	}
	return r
}

// planCase is one of the combinations, in words if need be.
type planCase struct {
	r             intent
	f             facts
	name, machine string
}

func (c planCase) String() string {
	return fmt.Sprintf("%s -- %s (%s, passed %v)", strings.Join(c.r.flags(), " "), c.name, c.machine, c.f.passed)
}

// Each kind of link is had by its word, with one of the routes; and the words are those of the help and of
// completion, and the flag's.
func TestLinkWords(t *testing.T) {
	t.Parallel()
	if want := []string{"auto", "native", "node", "sticky-session", "activation", "any"}; !slices.Equal(linkWords, want) {
		t.Errorf("%q, want %q", linkWords, want)
	}
	if words := choices["worker-link"]; !slices.Equal(words, linkWords) {
		t.Errorf("completion has %q", words)
	}
	for i, l := range links {
		if l.help() == "" || !strings.Contains(linkHelp(), l.String()) || slices.Index(linkWords, l.String()) != i {
			t.Errorf("%v: help %q", l, l.help())
		}
	}
	for _, kind := range master.LinkKinds() {
		i := slices.Index(linkWords, kind.Flag())
		if i < 0 {
			t.Errorf("no word for %v", kind)
			continue
		}
		had := false
		for _, route := range []route{routeAuto, routeMaster, routeKernel} {
			d, err := intent{route: route, link: links[i], workers: 2}.decide(facts{})
			had = had || err == nil && d.link == kind
		}
		if !had {
			t.Errorf("--worker-link %s does not come to %v", kind.Flag(), kind)
		}
	}
}

// planCases are all combinations for each kind of command and on each kind of machine, in an order that is always the same.
func planCases() iter.Seq[planCase] {
	return func(yield func(planCase) bool) {
		for _, name := range slices.Sorted(maps.Keys(planCommands)) {
			for _, machine := range slices.Sorted(maps.Keys(machines)) {
				for _, passed := range []bool{false, true} {
					c := planCase{f: planCommands[name].on(machines[machine], passed), name: name, machine: machine}
					for c.r = range planIntents() {
						if machine != "all" && !c.r.mayBind(c.f) && !c.r.mayInject(c.f) && c.r.link != linkActivation {
							continue // as on the machine that has all: asksNoMore
						}
						if !yield(c) {
							return
						}
					}
				}
			}
		}
	}
}

// planStep is how many combinations tests go on by: with the race detector all of them would take as long as many tests
// that start processes. It is a prime that no number of values divides, so that each value comes with each other one.
func planStep() int {
	if raceEnabled {
		return 29
	}
	return 1
}

// TestPlan walks every combination of what the plan depends on, for each kind of command and on each
// kind of machine: what comes of it is a link that the route has, or an error that names a flag that
// was typed, and what to do. With the race detector it walks a part of them; `make test` runs it without, too.
// Rows C1, C2 and D4.
func TestPlan(t *testing.T) {
	t.Parallel()
	n, plans := 0, 0
	remedied := map[string]bool{}
	for c := range planCases() {
		if n++; n%planStep() != 0 {
			continue
		}
		d, err := c.r.decide(c.f)
		if err != nil {
			refuses(t, c, err, remedied)
		} else {
			fitsRoute(t, c, d)
			listening := c
			listening.r.listen = []string{":80"}
			listens, _ := listening.r.decide(c.f)
			if fitsRoute(t, listening, listens); listens.link != d.link || listens.route != d.route {
				t.Errorf("%s: route %v, link %v; without --listen %v, %v", c, listens.route, listens.link, d.route, d.link)
			}
		}
		asksNoMore(t, c, d, err)
		if plans++; t.Failed() {
			t.FailNow() // the others are alike
		}
	}
	t.Logf("%d of %d plans, remedies: %q", plans, n, slices.Sorted(maps.Keys(remedied)))
	if len(remedied) < 8 {
		t.Error("few remedies were tried")
	}
}

// TestPlans pins the plans that people get.
// Rows C1, C2 and D4.
func TestPlans(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flags   intent
		command string
		machine string
		passed  bool
		plan    string // or the beginning of the error
	}{
		// Nothing is asked for: the kernel routes where it can.
		{command: "native", plan: "kernel, or master; native; :8080"},
		{command: "node app.js", plan: "kernel, or master; node; :8080"},
		{command: "unknown", plan: "kernel; any; where the worker listens"},
		{command: "gunicorn", plan: "kernel; any; where the worker listens"},
		{command: "npm start", plan: "kernel; any; where the worker listens"},
		{command: "node", plan: "Node without a script: name a script"},
		{command: "gunicorn", machine: "no bind", plan: "kernel; activation; :8080"},
		{command: "uvicorn", machine: "no bind", plan: "EBUSY"},
		{command: "native", machine: "no /proc", plan: "kernel, or master; native; :8080"},
		{command: "unknown", machine: "no /proc", plan: "there is no /proc"},
		// The master does all that the kernel cannot do.
		{flags: intent{header: true}, command: "native", plan: "master; native; :8080"},
		{flags: intent{accessLog: true}, command: "node app.js", plan: "master; node; :8080"},
		{flags: intent{nextWhenDown: true}, command: "node app.js", plan: "master; node; :8080"},
		{flags: intent{maxConnections: 5}, command: "native", plan: "master; native; :8080"},
		{flags: intent{workers: 200}, command: "native", machine: "no eBPF", plan: "master; native; :8080"},
		{flags: intent{workers: 200}, command: "native", plan: "kernel, or master; native; :8080"},
		{flags: intent{header: true}, command: "unknown", plan: "master; any, by accept injection; :8080"},
		{flags: intent{brought: true}, command: "gunicorn", plan: "master; any, by accept injection; :8080"},
		{flags: intent{affinity: true}, command: "node app.js", plan: "master; node; :8080"},
		{flags: intent{header: true}, command: "unknown", machine: "no injection", plan: "master; native; :8080"},
		{flags: intent{header: true}, command: "gunicorn", machine: "no injection", plan: "an old kernel"},
		{flags: intent{header: true, maxConnections: 5}, command: "unknown", plan: "master; native; :8080"},
		{flags: intent{header: true}, command: "tool", plan: "master; node; :8080"},
		{flags: intent{route: routeKernel, header: true}, command: "native", plan: "--route kernel: with --behind-proxy"},
		// Listeners that systemd has opened.
		{command: "native", passed: true, plan: "master; native; what was passed"},
		{command: "gunicorn", passed: true, plan: "master; any, by accept injection; what was passed"},
		{flags: intent{link: linkAny}, command: "gunicorn", passed: true, plan: "master; any, by accept injection; what was passed"},
		{flags: intent{listen: []string{":80"}}, command: "native", passed: true, plan: "master; native; what was passed, :80"},
		// Addresses.
		{flags: intent{listen: []string{":80", ":81"}}, command: "unknown", plan: "kernel; any; :80, :81"},
		// Links that are asked for.
		{flags: intent{link: linkAny, header: true}, command: "gunicorn", plan: "master; any, by accept injection; :8080"},
		{flags: intent{link: linkAny, header: true}, command: "gunicorn", machine: "no injection", plan: "an old kernel"},
		{flags: intent{link: linkAny, workers: 200}, command: "gunicorn", machine: "no eBPF", plan: "--worker-link any: 200 slots"},
		{flags: intent{link: linkAny, workers: 200}, command: "gunicorn", plan: "kernel; any; where the worker listens"},
		{flags: intent{link: linkActivation}, command: "gunicorn", plan: "kernel; activation; :8080"},
		{flags: intent{link: linkActivation, route: routeMaster}, command: "gunicorn", plan: "--worker-link activation: its workers accept from a listener of their own, and with --route master"},
		{flags: intent{link: linkNative, readyWhen: nodeipc.ReadyMessage}, command: "node app.js", plan: "--ready-when message: only Node workers say so"},
	} {
		if c.flags.workers == 0 {
			c.flags.workers = 2
		}
		if c.machine == "" {
			c.machine = "all"
		}
		what := planCase{c.flags, planCommands[c.command].on(machines[c.machine], c.passed), c.command, c.machine}
		d, err := c.flags.decide(what.f)
		if err != nil {
			if !strings.HasPrefix(err.Error(), c.plan) {
				t.Errorf("%s: %v, want %s", what, err, c.plan)
			}
			continue
		}
		route := d.route.String()
		if d.fallback {
			route += ", or master"
		}
		listen := slices.Clone(d.listen)
		if c.passed {
			listen = slices.Insert(listen, 0, "what was passed")
		}
		if d.follow {
			listen = append(listen, "where the worker listens")
		}
		if got := fmt.Sprintf("%s; %v; %s", route, d.link, strings.Join(listen, ", ")); got != c.plan {
			t.Errorf("%s: %s, want %s", what, got, c.plan)
		}
	}
}

// fitsRoute: the link is one that the route has, and everything asked for is kept.
func fitsRoute(t *testing.T, what planCase, d decision) {
	t.Helper()
	r, f := what.r, what.f
	kernel := d.route == routeKernel
	rows := map[master.LinkKind]bool{ // whether the kernel's route, and the master's, have it
		master.LinkNative: true, master.LinkNode: true, master.LinkActivation: kernel, master.LinkAny: kernel, master.LinkInject: !kernel,
	}
	switch {
	case d.route != routeMaster && d.route != routeKernel, !rows[d.link]:
		t.Errorf("%s: route %v has no link %v", what, d.route, d.link)
	case r.route != routeAuto && d.route != r.route:
		t.Errorf("%s: route %v", what, d.route)
	case r.link != linkAuto && d.link.Flag() != r.link.kind.Flag():
		t.Errorf("%s: link %v", what, d.link)
	case kernel && r.notKernel(f) != nil:
		t.Errorf("%s: the kernel routes, and cannot: %v", what, r.notKernel(f))
	case d.fallback && !rows[d.link], d.fallback && r.route == routeKernel:
		t.Errorf("%s: falls back to a route that it cannot", what)
	case (d.notKernel != nil) != (r.route == routeAuto && !kernel && d.link != master.LinkInject):
		t.Errorf("%s: why does the kernel not route? %v", what, d.notKernel)
	case d.notKernel == nil && d.routeWhy == "":
		t.Errorf("%s: nobody knows why the route was chosen", what)
	case (d.why != "") != (r.link == linkAuto):
		t.Errorf("%s: the link was chosen because %q", what, d.why)
	case d.link != master.LinkNative && r.maxConnections > 0:
		t.Errorf("%s: link %v cannot", what, d.link)
	case d.link != master.LinkNode && (d.readyWhen != nodeipc.ReadyAuto || d.dialect != 0):
		t.Errorf("%s: link %v is not Node's", what, d.link)
	case d.follow && (d.link != master.LinkAny || !kernel || f.passed || len(d.listen) > 0):
		t.Errorf("%s: follows a worker, and listens on %v", what, d.listen)
	case !d.follow && !f.passed && len(d.listen) == 0:
		t.Errorf("%s: listens nowhere", what)
	}
	if d.fallback {
		back := d.withoutKernel(errors.New("no BPF"))
		if back.route != routeMaster || back.fallback || back.notKernel == nil || back.link == master.LinkActivation || back.link == master.LinkAny {
			t.Errorf("%s: without the kernel %+v", what, back)
		}
	}
	chosen := 0
	for _, remark := range d.remarks {
		if remark.message == linkChosen {
			chosen++
		}
		if len(remark.fields)%2 != 0 || strings.ContainsAny(remark.message, "%=") {
			t.Errorf("%s: %v", what, remark)
		}
	}
	if chosen != 1 {
		t.Errorf("%s: the log says %d times how workers get connections", what, chosen)
	}
}

// refuses: an error names a flag that was typed, or what the machine lacks, and a remedy; and who follows
// that is not refused for the same again.
func refuses(t *testing.T, what planCase, err error, remedied map[string]bool) {
	t.Helper()
	r, f := what.r, what.f
	text := err.Error()
	if _, usage := errors.AsType[usageError](err); !usage {
		for _, lacks := range []error{f.noProc, f.noBind, f.noInjection} {
			if lacks != nil && errors.Is(err, lacks) {
				return
			}
		}
		t.Errorf("%s: neither a usage error, nor what the machine lacks: %s", what, text)
		return
	}
	if f.program.Kind == programs.NodeWithoutScript && strings.HasSuffix(text, "name a script") {
		return
	}
	names := func(flag string) bool { return strings.Contains(text, strings.Fields(flag)[0]) }
	if !slices.ContainsFunc(r.flags(), names) && !f.passed && (f.noBind == nil || !errors.Is(err, f.noBind)) {
		t.Errorf("%s: names no flag that was typed: %s", what, text)
	}
	if !strings.Contains(text, "use ") && !strings.Contains(text, "run node itself") {
		t.Errorf("%s: no remedy: %s", what, text)
	}
	for _, next := range r.remedied(t, text) {
		remedied[next.remedy] = true
		_, again := next.decide(f)
		lacking := f.noBind != nil && errors.Is(again, f.noBind) // that is another story
		if _, usage := errors.AsType[usageError](again); usage && !lacking && (strings.HasPrefix(again.Error(), next.flag) || again.Error() == text) {
			t.Errorf("%s: %s\nand with %s: %v", what, text, next.remedy, again)
		}
	}
	if !r.solvable(t, f, maxRemedies) {
		t.Errorf("%s: who follows the advice gets nowhere: %s", what, text)
	}
}

// maxRemedies is how often somebody follows the advice of an error at most, until handfast starts.
const maxRemedies = 4

// solvable tells whether who follows the advice of errors comes to a plan, or to what the machine lacks or
// the command has to be.
func (r intent) solvable(t *testing.T, f facts, steps int) bool {
	_, err := r.decide(f)
	if _, usage := errors.AsType[usageError](err); !usage || strings.Contains(err.Error(), "run node itself") || strings.HasSuffix(err.Error(), "name a script") {
		return true
	}
	return steps > 0 && slices.ContainsFunc(r.remedied(t, err.Error()), func(next remediedIntent) bool { return next.solvable(t, f, steps-1) })
}

// remediedIntent is what somebody asks for who has followed an error's advice.
type remediedIntent struct {
	intent
	flag, remedy string
}

// remedied returns what comes of each advice of an error.
func (r intent) remedied(t *testing.T, text string) (all []remediedIntent) {
	at := strings.LastIndex(text, "use ")
	for _, remedy := range aRemedy.FindAllString(text[max(at, 0):], -1) {
		flag, value, _ := strings.Cut(remedy, " ")
		all = append(all, remediedIntent{r.with(t, flag, value), flag, remedy})
	}
	return all
}

// aRemedy is a flag with a value that an error advises to use.
var aRemedy = regexp.MustCompile(`--(?:worker-link|route|when-down|ready-when) [a-z-]+|--workers \d+`)

// asksNoMore: the plan does not depend on facts that are not looked up for it.
func asksNoMore(t *testing.T, what planCase, d decision, err error) {
	t.Helper()
	r, f := what.r, what.f
	poison := errors.New("nobody has looked")
	if r.link != linkActivation {
		f.noProc = poison
	}
	if !r.mayBind(f) {
		f.noBind = poison
	}
	if !r.mayInject(f) {
		f.noInjection = poison
	}
	again, err2 := r.decide(f)
	same := (err == nil) == (err2 == nil) && (err == nil || err.Error() == err2.Error()) &&
		again.route == d.route && again.link == d.link && again.why == d.why && len(again.remarks) == len(d.remarks)
	if !same {
		t.Errorf("%s: %+v, %v; without facts %+v, %v", what, d, err, again, err2)
	}
}

// TestGather: facts come from the command where workers run, and only those are looked up that the plan
// may depend on.
// Rows C1, C2 and D4.
func TestGather(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"native.sh":    "#!/bin/sh\nexec 3<&$HANDFAST_FD\n",
		"app.js":       "require('sticky-session')",
		"master.js":    "recluster('app.js')",
		"package.json": `{"dependencies": {"sticky-session": "1"}, "scripts": {"start": "node app.js"}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	setting := supervisor.Setting{Directory: dir}
	for _, c := range []struct {
		command string
		link    link
		right   func(f facts) bool
	}{
		{"./native.sh", linkAuto, func(f facts) bool { return f.mailbox && f.noBind == nil }},
		{"sh native.sh", linkAuto, func(f facts) bool { return f.mailbox }},
		{"./native.sh", linkNative, func(f facts) bool { return !f.mailbox && f.program.Args == nil }},
		{"node app.js", linkAuto, func(f facts) bool {
			return f.program.Kind == programs.Node && f.project.StickySession && f.masterCall == ""
		}},
		{"node master.js", linkAuto, func(f facts) bool { return f.masterCall == "recluster()" }},
		{"node master.js", linkNode, func(f facts) bool { return f.program.Kind == programs.Node && f.masterCall == "" }},
		{"gunicorn -w 2 app:app", linkAuto, func(f facts) bool { return f.known && f.server.Name == "gunicorn" && !f.mailbox }},
	} {
		for _, passed := range []bool{false, true} {
			r := intent{link: c.link, workers: 2}
			if f := r.gather(setting, strings.Fields(c.command), passed); !c.right(f) || f.passed != passed || f.noInjection != nil {
				t.Errorf("%s, --worker-link %v: %+v", c.command, c.link, f)
			}
		}
	}
}

// TestSocketIOSticky: requests name the workers of @socket.io/sticky's sessions, whether --session says so or not, unless the kernel is to
// route; and workers drain by what they report.
func TestSocketIOSticky(t *testing.T) {
	t.Parallel()
	f := facts{program: programs.Command{Kind: programs.Node, Script: "/sticky.js"}, project: nodeipc.Project{Path: "/package.json", SocketIOSticky: true}}
	cookie, engineIO := forwarded.Key{Kind: forwarded.ByCookie, Name: "a"}, forwarded.Key{Kind: forwarded.ByEngineIO}
	for _, tt := range []struct {
		ask      intent
		asked    forwarded.Sessions
		route    route
		sessions forwarded.Sessions
		idle     time.Duration
	}{
		{intent{}, nil, routeMaster, forwarded.Sessions{engineIO}, 0},
		{intent{}, forwarded.Sessions{cookie}, routeMaster, forwarded.Sessions{cookie, engineIO}, sessionIdle},
		{intent{}, forwarded.Sessions{engineIO}, routeMaster, forwarded.Sessions{engineIO}, sessionIdle},
		{intent{route: routeKernel}, nil, routeKernel, nil, sessionIdle},
		{intent{link: linkNode}, nil, routeKernel, nil, sessionIdle},
	} {
		tt.ask.workers, tt.ask.brought = 2, len(tt.asked) > 0
		config := master.Config{SessionIdle: sessionIdle, Logger: hclog.NewNullLogger()}
		config.Balancer.Clients.Rules.Sessions = tt.asked
		d, err := tt.ask.decide(f)
		if err != nil {
			t.Fatal(err)
		}
		d.configure(&config)
		if got := config.Balancer.Clients.Rules.Sessions; d.route != tt.route || !slices.Equal(got, tt.sessions) || config.SessionIdle != tt.idle {
			t.Errorf("%+v, --session %v: route %v, sessions by %v, idle %v", tt.ask, tt.asked, d.route, got, config.SessionIdle)
		}
	}
}

// TestFirstRequestDecides: where requests decide, and workers do not hand connections back, the plan says what a proxy has to do.
func TestFirstRequestDecides(t *testing.T) {
	for _, c := range []struct {
		flags   intent
		command string
		want    bool
	}{
		{intent{header: true}, "gunicorn", true},
		{intent{header: true}, "native", false},
		{intent{header: true, keep: true}, "native", true},
		{intent{header: true}, "node app.js", false},
		{intent{header: true, proxyProtocol: true}, "node app.js", true},
		{intent{header: true, proxyProtocol: true}, "native", false},
		{intent{sessions: true, brought: true}, "gunicorn", true},
		{intent{sessions: true, brought: true, keep: true}, "node app.js", true},
		{intent{sessions: true, brought: true}, "node app.js", false},
		{intent{brought: true, link: linkAny}, "node app.js", true},
		{intent{}, "gunicorn", false},
		{intent{keep: true}, "native", false},
	} {
		c.flags.workers = 1
		d, err := c.flags.decide(planCommands[c.command].on(machines["all"], false))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(d.remarks, func(r remark) bool { return strings.HasPrefix(r.message, "the first request on a connection decides") })
		if i >= 0 != c.want || i >= 0 && !strings.Contains(d.remarks[i].String(), "turn off its pool of connections, or have it choose slots (--slot-address)") {
			t.Errorf("%+v, %s: %v, want %v", c.flags, c.command, d.remarks, c.want)
		}
	}
}

// TestEngineIOWithoutModule: the plan says that ids name no worker unless the program has them do so, and warns if Node could have.
func TestEngineIOWithoutModule(t *testing.T) {
	for _, c := range []struct {
		link         link
		command      string
		said, warned bool
	}{
		{linkAuto, "node app.js", false, false},
		{linkNode, "node app.js", false, false},
		{linkAny, "node app.js", true, true},
		{linkAny, "npm start", true, true},
		{linkAuto, "gunicorn", true, false},
		{linkAuto, "native", true, false},
	} {
		flags := intent{workers: 1, link: c.link, sessions: true, brought: true, engineIO: true}
		d, err := flags.decide(planCommands[c.command].on(machines["all"], false))
		if err != nil {
			t.Fatal(c.command, err)
		}
		i := slices.IndexFunc(d.remarks, func(r remark) bool { return strings.HasPrefix(r.message, "ids of Engine.IO's sessions") })
		if i >= 0 != c.said || i >= 0 && (d.remarks[i].warning != c.warned || c.warned != strings.Contains(d.remarks[i].String(), "--worker-link node")) {
			t.Errorf("%v, %s: %v", c.link, c.command, d.remarks)
		}
	}
}

// TestSessionIdleAlone: a flag without effect is said to have none.
func TestSessionIdleAlone(t *testing.T) {
	for _, c := range []struct {
		flags intent
		want  bool
	}{
		{intent{sessionIdle: true}, true},
		{intent{sessionIdle: true, sessions: true, brought: true}, false},
		{intent{sessions: true, brought: true}, false},
		{intent{}, false},
	} {
		c.flags.workers = 1
		d, err := c.flags.decide(planCommands["native"].on(machines["all"], false))
		if err != nil {
			t.Fatal(err)
		}
		if said := slices.ContainsFunc(d.remarks, func(r remark) bool { return strings.HasPrefix(r.message, "--session-idle has no effect") }); said != c.want {
			t.Errorf("%+v: %v, want %v", c.flags, said, c.want)
		}
	}
}
