package master

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/link/acceptinject"
	"github.com/handfast/handfast/master/link/activation"
	"github.com/handfast/handfast/master/link/bindswap"
	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/link/mailbox"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// LinkKind says how workers get their connections.
type LinkKind int

// The kinds of links, in the order of rows. Workers of LinkActivation and LinkAny get their slot's
// listeners and nothing else, so the kernel must route; for LinkInject the master must.
const (
	LinkNative     LinkKind = iota // from a mailbox, as package fdpass describes it
	LinkNode                       // over Node's own channel (package nodeipc)
	LinkActivation                 // they inherit listeners, as from systemd (package activation)
	LinkAny                        // they bind the port themselves (package bindswap)
	LinkInject                     // so they do, and accept is answered (package acceptinject)
)

func (k LinkKind) row() *row      { return &rows[k] }
func (k LinkKind) String() string { return rows[k].name }

// LinkKinds returns all kinds.
func LinkKinds() (all []LinkKind) {
	for i := range rows {
		all = append(all, LinkKind(i))
	}
	return all
}

// Flag returns the word that --worker-link has for it. Two kinds may have the same: the route decides.
func (k LinkKind) Flag() string { return rows[k].flag }

// Help returns for which workers it is; empty: it is in the help of another kind with the same Flag.
func (k LinkKind) Help() string { return rows[k].help }

// TakesConnections tells whether workers can be handed single connections, so that the master can route.
func (k LinkKind) TakesConnections() bool { return rows[k].connections }

// TakesListeners tells whether workers can be given listeners, so that the kernel can route.
func (k LinkKind) TakesListeners() bool { return rows[k].listeners }

// Follows tells whether workers say where they listen, so that handfast need not know it before.
func (k LinkKind) Follows() bool { return rows[k].follows }

// Reports tells whether workers may report their connections.
func (k LinkKind) Reports() bool { return rows[k].reports }

// Clustered tells whether workers are processes of a Node cluster, each of them.
func (k LinkKind) Clustered() bool { return rows[k].clustered }

// HandsBack tells whether workers can hand connections back between two requests.
func (k LinkKind) HandsBack() bool { return rows[k].handsBack }

// Foreign tells whether workers know nothing of handfast. Their process begins as the master's program (package
// launch), and a signal tells it to finish.
func (k LinkKind) Foreign() bool { return rows[k].foreign }

// row is one kind of link: what its workers take and can do, and how a worker's link is made. A link that
// is not as its row says is none (row.check).
type row struct {
	name string // in the log and in Status
	flag string // Flag
	help string // Help

	connections bool // TakesConnections
	listeners   bool // TakesListeners
	blocking    bool // those wait in accept, unless the worker changes that
	follows     bool // Follows
	foreign     bool // Foreign
	binds       bool // workers bind the port by themselves
	anywhere    bool // and wait for clients at sockets that are bound to other addresses
	reports     bool // Reports
	clustered   bool // Clustered
	handsBack   bool // HandsBack

	open    func(*Master, supervisor.Seat, *kernelroute.Lease) (*workerLink, error)
	restore func(*Master, supervisor.Seat, *kernelroute.Lease, *reexec.Bundle, json.RawMessage) (*workerLink, error) // nil: it cannot be kept
	common  func(*Master, *Config) common                                                                            // nil: workers have nothing in common

	// For operators. The last two may be empty.
	waitsFor  string // before a worker is ready
	notReady  string // what to do if that does not come
	elsewhere string // what to do about workers that listen elsewhere, beside --listen
	sharing   string // what to do about workers that listen by themselves beside their slot's listener
}

// rows has one row for each LinkKind. To add a kind of link is to add a row, and its package.
var rows = [...]row{
	LinkNative: {
		name:        "native",
		flag:        "native",
		help:        "package worker, fdpass",
		connections: true,
		listeners:   true,
		reports:     true,
		handsBack:   true,
		open: func(m *Master, seat supervisor.Seat, l *kernelroute.Lease) (*workerLink, error) {
			return mailboxLink(mailbox.Open(l.Offer(), m.mailboxRequests(seat), m.balancer.Readmit))
		},
		restore: func(m *Master, seat supervisor.Seat, _ *kernelroute.Lease, b *reexec.Bundle, state json.RawMessage) (*workerLink, error) {
			return mailboxLink(mailbox.Restore(b, state, m.mailboxRequests(seat), m.balancer.Readmit))
		},
		waitsFor:  "its word by the mailbox (package worker, fdpass/doc.go)",
		notReady:  "--worker-link any if it knows nothing of handfast and listens by itself",
		elsewhere: "--worker-link any if it knows nothing of handfast",
		sharing:   "have it listen without SO_REUSEPORT, or say --worker-link any",
	},
	LinkNode: {
		name:        "node",
		flag:        "node",
		help:        "any Node server",
		connections: true,
		listeners:   true,
		clustered:   true,
		handsBack:   true,
		common: func(m *Master, cfg *Config) common {
			m.node = nodeipc.NewPrimary(m.nodeConfig(cfg))
			return m.node
		},
		open: func(m *Master, seat supervisor.Seat, l *kernelroute.Lease) (*workerLink, error) {
			return nodeLink(m.node.Open(seat.Slot, own(l)))
		},
		restore: func(m *Master, seat supervisor.Seat, l *kernelroute.Lease, b *reexec.Bundle, state json.RawMessage) (*workerLink, error) {
			return nodeLink(m.node.RestoreLink(b, seat.Slot, own(l), state))
		},
		waitsFor: "that it listens on handfast's port, or sends {cmd: 'ready'}",
		notReady: "if it is written for sticky-session: --worker-link sticky-session; for @socket.io/sticky: --ready-when started; if it starts another program, which listens, run that itself, or say --worker-link any",
		sharing:  "have it listen without reusePort and exclusive, or say --worker-link any",
	},
	LinkActivation: {
		name:      "activation",
		flag:      "activation",
		help:      "LISTEN_FDS",
		listeners: true,
		blocking:  true,
		foreign:   true,
		open: func(m *Master, _ supervisor.Seat, l *kernelroute.Lease) (*workerLink, error) {
			return activationLink(activation.Open(m.activationConfig(l)))
		},
		restore: func(m *Master, _ supervisor.Seat, l *kernelroute.Lease, b *reexec.Bundle, state json.RawMessage) (*workerLink, error) {
			return activationLink(activation.Restore(b, m.activationConfig(l), state))
		},
		waitsFor:  "that it accepts from the inherited listeners (LISTEN_FDS)",
		notReady:  "--worker-link any if it takes no socket from systemd",
		elsewhere: "--worker-link any if it takes no socket from systemd (LISTEN_FDS)",
		sharing:   "have it listen without SO_REUSEPORT, or say --worker-link any",
	},
	LinkAny: {
		name:      "any",
		flag:      "any",
		help:      "a server that listens by itself; with --behind-proxy, --proxy-protocol, --route master and --when-down next a connection costs the master more",
		listeners: true,
		blocking:  true,
		follows:   true,
		binds:     true,
		foreign:   true,
		open: func(m *Master, _ supervisor.Seat, l *kernelroute.Lease) (*workerLink, error) {
			return bindLink(bindswap.Open(m.bindConfig(l)))
		},
		restore: func(m *Master, _ supervisor.Seat, l *kernelroute.Lease, b *reexec.Bundle, state json.RawMessage) (*workerLink, error) {
			return bindLink(bindswap.Restore(b, m.bindConfig(l), state))
		},
		waitsFor: "that it listens on handfast's port, or on any without --listen",
		notReady: "have it bind the address of --listen; --ready-timeout if it takes longer",
		sharing:  "have it listen without SO_REUSEPORT, or say --worker-link any",
	},
	LinkInject: {
		name:        "any, by accept injection",
		flag:        "any",
		connections: true,
		binds:       true,
		anywhere:    true,
		foreign:     true,
		open: func(m *Master, _ supervisor.Seat, _ *kernelroute.Lease) (*workerLink, error) {
			return injectLink(acceptinject.Open(m.injectConfig()))
		},
		waitsFor: "that it listens on handfast's port",
		notReady: "have it bind the address of --listen; --ready-timeout if it takes longer",
	},
}

// kindsThat are the names of those that can do something.
func kindsThat(can func(LinkKind) bool) string {
	var names []string
	for _, kind := range LinkKinds() {
		if can(kind) {
			names = append(names, kind.String())
		}
	}
	return strings.Join(names, " or ")
}

// The compiler checks here what the rows rely on, and the balancer.
var (
	_ supervisor.Link   = (*mailbox.Mailbox)(nil)
	_ balancer.Copier   = (*mailbox.Mailbox)(nil) // else the straight line closes one by one
	_ balancer.Returner = (*mailbox.Mailbox)(nil) // else connections that it hands back idle are closed
	_ supervisor.Link   = (*nodeipc.Link)(nil)
	_ balancer.Worker   = (*nodeipc.Link)(nil)
	_ balancer.Returner = (*nodeipc.Link)(nil)
	_ supervisor.Link   = (*activation.Link)(nil)
	_ supervisor.Link   = (*bindswap.Link)(nil)
	_ supervisor.Link   = (*acceptinject.Link)(nil)
	_ balancer.Worker   = (*acceptinject.Link)(nil)
	_ kernelroute.Link  = (*workerLink)(nil)
)

// workerLink is a worker's link, and what can be asked of it beside what the supervisor asks. A field is nil
// if links of its kind cannot tell.
type workerLink struct {
	supervisor.Link
	worker    balancer.Worker             // takes connections
	accepts   func(netip.AddrPort) bool   // whether the worker accepts from its own listener at an address, when it is ready
	served    func() bool                 // whether the worker has a socket to get connections from, whatever its address
	queued    func() bool                 // whether connections lie in its queue, which go back when it is told to finish
	lost      func(supervisor.Exit) bool  // whether its drain signal has ended it at once, although it was busy
	asked     func() []foreign.OwnAddress // addresses that it has asked for and are not the balancer's
	handsBack func() bool                 // whether the worker, which is ready, hands connections back between two requests
	reports   reporter

	lease *kernelroute.Lease // of listeners; nil: it has none
	named *named             // nil: no session names the worker
}

// reporter is a worker that may say something of itself.
type reporter interface {
	Report() (fdpass.Report, bool) // its connections; false: it has not said
	MaxConnections() int           // that it may have open; 0: any number
	Answers() bool                 // pings
	LastNamed() time.Time          // when it said that further requests have named it; zero: it never did
}

// known returns what can be asked of a link. Links that were not made here, of workers of the program
// before that will not be ready any more, can tell nothing.
func known(link supervisor.Link) *workerLink {
	if l, ok := link.(*workerLink); ok {
		return l
	}
	return &workerLink{Link: link}
}

// made returns a link that its row has made, unless it is not as the row says. Its worker would be started
// all the same, and its slot be answered 502.
func (r *row) made(l *workerLink, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	if err := r.check(l); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// check says in which way a link is not as its row says.
func (r *row) check(l *workerLink) error {
	for _, c := range []struct {
		what      string
		said, has bool
	}{
		{"take connections", r.connections, l.worker != nil},
		{"accept from listeners", r.listeners, l.accepts != nil},
		{"bind the port", r.binds, l.asked != nil},
		{"are foreign", r.foreign, l.lost != nil},
		{"report", r.reports, l.reports != nil},
		{"hand connections back", r.handsBack, l.handsBack != nil},
	} {
		if c.said != c.has {
			return fmt.Errorf("master: whether workers of link %s %s: its row says %v, their link %v", r.name, c.what, c.said, c.has)
		}
	}
	return nil
}

// Worker implements kernelroute.Link.
func (l *workerLink) Worker() balancer.Worker { return l.worker }

// Accepts implements kernelroute.Link.
func (l *workerLink) Accepts(at netip.AddrPort) bool { return l.accepts != nil && l.accepts(at) }

// Ping implements supervisor.Link. A worker that does not answer is alive if it takes what waits for it, in its listeners as well.
func (l *workerLink) Ping() (alive bool) {
	alive = l.Link.Ping()
	if l.reports == nil || !l.reports.Answers() {
		takes := l.lease.Takes()
		alive = alive && takes
	}
	return alive
}

// Begun tells whether a worker may accept already from the listener that it got: while its slot is empty the slot's clients come there. Other workers say so
// when they begin, foreign ones have bound it.
func (l *workerLink) Begun() bool {
	if l.lease == nil || l.accepts == nil {
		return false
	}
	select {
	case <-l.Ready():
		return true
	default:
		return l.isServed()
	}
}

// Heeds tells whether a worker that accepts from its own listener says when it begins, and ends if it hears before that it is to drain.
func (l *workerLink) Heeds() bool { return l.lease != nil && l.accepts != nil && l.reports != nil }

// eachRequest tells whether each request on a connection is served where it belongs, since the worker hands the connection back.
func (l *workerLink) eachRequest() bool { return l.handsBack != nil && l.handsBack() }

func (l *workerLink) isServed() bool { return l.served != nil && l.served() }

func mailboxLink(l *mailbox.Mailbox, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	return &workerLink{Link: l, worker: l, accepts: l.Accepts, handsBack: l.Looks, reports: l}, nil
}

func nodeLink(l *nodeipc.Link, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	return &workerLink{Link: l, worker: l, accepts: l.Accepts, served: l.Served, handsBack: l.HandsBack}, nil
}

func activationLink(l *activation.Link, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	everywhere := func(netip.AddrPort) bool { return true }
	return &workerLink{Link: l, accepts: everywhere, lost: l.Lost}, nil
}

func bindLink(l *bindswap.Link, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	return &workerLink{Link: l, accepts: l.Accepts, served: l.Served, lost: l.Lost, asked: l.OwnAddresses}, nil
}

func injectLink(l *acceptinject.Link, err error) (*workerLink, error) {
	if err != nil {
		return nil, err
	}
	return &workerLink{Link: l, worker: l, served: l.Served, queued: l.Queued, lost: l.Lost, asked: l.OwnAddresses}, nil
}

// common is what all workers of a kind have in common.
type common interface {
	Stop() // no more connections come
	Close()
	Save(*reexec.Bundle) error
	Restore(*reexec.Bundle) error
}

// nothing is in common.
type nothing struct{}

func (nothing) Stop()                        {}
func (nothing) Close()                       {}
func (nothing) Save(*reexec.Bundle) error    { return nil }
func (nothing) Restore(*reexec.Bundle) error { return nil }

func (m *Master) nodeConfig(cfg *Config) nodeipc.Config {
	config := nodeipc.Config{
		Addresses: m.route.addresses(),
		ReadyWhen: cfg.ReadyWhen,
		Dialect:   cfg.Dialect,
		Readmit:   m.balancer.Readmit,
		GiveUp:    m.balancer.GiveUp,
		Patience:  cfg.Balancer.Patience(),
		Sessions:  sessions{m.balancer.Table()},
		User:      cfg.Supervisor.Rights.User,
		Open:      m.connections.Open,
		Logger:    m.few.Named("node"),
	}
	if cfg.kernelRoutes() {
		return config
	}
	config.Module = cfg.NodeModule
	// What a PROXY header said of a connection Node would not give back with it, and does not change from request to request.
	if clients := &cfg.Balancer.Clients; cfg.NodeModule != nil && !cfg.NoHandBack && !clients.ProxyProtocol {
		config.Everybody, config.IdleTimeout = clients.Rules.LooksAtAll(), cfg.Balancer.IdleTimeout
		config.HandBack = func(from *nodeipc.Link, conns []fdpass.Handoff) (int, error) {
			return m.balancer.HandBack(from.Slot(), from, conns)
		}
	}
	return config
}

// mailboxRequests are what is asked of a slot's worker. Only where the master routes can a connection come back to it.
func (m *Master) mailboxRequests(seat supervisor.Seat) mailbox.Requests {
	r := m.requests
	if r.Slots != nil {
		r.HandBack = func(from *mailbox.Mailbox, looked bool, conns []fdpass.Handoff) (int, error) {
			if !looked {
				return m.balancer.HandBack(seat.Slot, passedTo{from}, conns)
			}
			return m.balancer.HandBack(seat.Slot, from, conns)
		}
	}
	return r
}

// passedTo is a worker that has not looked at connections which others have passed to it: they may well be its own, and then it gets them at
// once.
type passedTo struct{ *mailbox.Mailbox }

// Looks implements balancer.Returner.
func (passedTo) Looks() bool { return false }

// sessions shows Node workers the table's sessions.
type sessions struct{ *balancer.Table }

func (s sessions) Claim(id clientip.Session, l *nodeipc.Link) bool {
	return s.Table.Claim(id, l, l.Slot())
}
func (s sessions) Release(id clientip.Session, l *nodeipc.Link) { s.Table.Release(id, l) }

// own returns by which listener a Node worker gets an address's connections; nil: the master hands
// them to it.
func own(l *kernelroute.Lease) func(netip.AddrPort) *os.File {
	if l == nil {
		return nil
	}
	return l.Listener
}

func (m *Master) activationConfig(l *kernelroute.Lease) activation.Config {
	program := programs.Resolve(m.command)
	return activation.Config{
		Listeners:   l.Files(),
		NonBlocking: program.InheritsNonBlocking(),
		Env:         program.InheritedEnv,
		Drain:       m.drain(l.Idle),
		Logger:      m.few.Named("activation"),
	}
}

func (m *Master) bindConfig(l *kernelroute.Lease) bindswap.Config {
	cfg := bindswap.Config{
		Listeners: l.Files(),
		IPv4:      l.OnlyIPv4,
		Drain:     m.drain(l.Idle),
		Logger:    m.few.Named("any"),
	}
	if l.Follows() {
		cfg.Follow = l.Follow
	}
	return cfg
}

func (m *Master) injectConfig() acceptinject.Config {
	return acceptinject.Config{
		Addresses: m.route.addresses(),
		Readmit:   m.balancer.Readmit,
		Drain:     m.drain(nil),
		Logger:    m.few.Named("any"),
	}
}
