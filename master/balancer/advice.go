package balancer

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/clientip"
)

const (
	// windowLen is how many connections a window of majority has at least.
	windowLen = 1000
	// openLen is how many must be open that NoteOpen tells of.
	openLen = 100
	// windowTime is the longest that they may take: where hardly anybody comes, most of it may be health checks.
	windowTime = 10 * time.Minute
)

// advice warns, once each, of two things that clients show of a configuration: most of them are hidden behind one address (which
// Balancer.Largest goes on to tell), and they come from networks whose word counts. It may be used by several goroutines.
type advice struct {
	log     hclog.Logger
	clients *clientip.Config
	inside  forwarded.Trust // networks that are trusted by default, if that decides who the client is

	crowdTold, insideTold atomic.Bool

	mu      sync.Mutex
	largest Largest // of the last window of a listener, or of NoteOpen
}

// Largest is a client that has more than half of the connections that lately came to a listener.
type Largest struct {
	Client      netip.Addr // not valid: there is no such client
	Connections int        // it has these
	Of          int        // of so many, which came within ten minutes
	At          time.Time  // of the last of them
}

// Share is that of the client, between a half and 1, or 0 if there is none.
func (l Largest) Share() float64 {
	if !l.Client.IsValid() {
		return 0
	}
	return float64(l.Connections) / float64(l.Of)
}

// Largest returns the client that has more than half of the connections, if there is one, and false while that is not known: two
// times in a row it takes 1,000 connections that came within ten minutes, or once 100 that are open (NoteOpen).
func (b *Balancer) Largest() (l Largest, known bool) {
	v := b.advice
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.largest, v.largest.Of > 0 && time.Since(v.largest.At) <= windowTime
}

// NoteOpen tells whose the connections are that workers have accepted by themselves and that are open, a client for each. They must be
// recognised by their address. One that has more than half of 100 or more is as if it had most of those that the balancer accepts.
func (b *Balancer) NoteOpen(clients []netip.Addr) {
	if len(clients) < openLen {
		return
	}
	var m majority
	of := func(addr netip.Addr) *clientip.Client {
		return &clientip.Client{Addr: addr, Key: b.cfg.Clients.Hash.Key(addr)}
	}
	for _, addr := range clients {
		m.add(of(addr))
	}
	m.suspect = m.candidate
	for _, addr := range clients {
		m.add(of(addr))
	}
	b.advice.note(m.suspect, m.hits, len(clients))
}

func newAdvice(log hclog.Logger, clients *clientip.Config) *advice {
	v := &advice{log: log, clients: clients}
	if rules := &clients.Rules; rules.Header != "" && rules.Hops == 0 {
		for _, network := range clientip.DefaultConfig().Rules.Trusted {
			if slices.Contains(rules.Trusted, network) {
				v.inside = append(v.inside, network)
			}
		}
	}
	return v
}

// look looks at a batch whose clients are known. It allocates nothing, unless it warns. The majority is the caller's alone.
func (v *advice) look(batch []connection, m *majority) {
	if client, hits, of := m.count(batch); of > 0 {
		v.note(client, hits, of)
	}
	if len(v.inside) == 0 || v.insideTold.Load() {
		return
	}
	for i := range batch {
		if c := &batch[i]; v.isInside(c) && !v.insideTold.Swap(true) {
			v.log.Warn("a client has an address that is trusted as a proxy's", "client", c.client.Addr.String(), "peer", addressText(c.Client.Addr()),
				"note", "clients in trusted networks can choose the address that counts", "remedy", "--trusted-proxies with the addresses of the proxies alone")
		}
	}
}

// note keeps what a window has shown.
func (v *advice) note(client clientip.Client, hits, of int) {
	l := Largest{Of: of, At: time.Now()}
	if 2*hits > of {
		l.Client, l.Connections = client.Addr, hits
	}
	v.mu.Lock()
	v.largest = l
	v.mu.Unlock()
	if l.Client.IsValid() && !v.crowdTold.Swap(true) {
		v.log.Warn("one client has most of the connections", "client", client.Addr.String(), "share", math.Round(100*l.Share())/100,
			"connections", of, "note", "all of its connections are for one slot", "remedy", v.remedyCrowd(client))
	}
}

// isInside tells whether a proxy speaks for a client that is believed as if it were one, too. What comes from loopback are a
// proxy's neighbours, such as health checks.
func (v *advice) isInside(c *connection) bool {
	addr := c.client.Addr
	return !c.addressed && addr.IsPrivate() && addr != c.Client.Addr() && v.inside.Contains(addr)
}

// remedyCrowd says how the clients behind one address can be told apart.
func (v *advice) remedyCrowd(client clientip.Client) string {
	rules := &v.clients.Rules
	switch {
	case rules.Header == "" && !v.clients.ProxyProtocol:
		return "if that is a proxy: --behind-proxy or --proxy-protocol"
	case rules.Header == "":
		return "if that is a proxy in front of another one: --behind-proxy, too, and --trusted-proxies with the addresses of both"
	case len(rules.Keys) > 0:
		return "see that clients do not share what --key names: " + rules.Keys.String()
	case rules.Hops > 0:
		return "if that is a proxy: --trusted-hops with the number of all proxies"
	case rules.Trusted.Contains(client.Addr):
		return "if that is a proxy: have it send " + rules.Header + ", or say --proxy-header"
	default:
		return "if that is a proxy: add it to --trusted-proxies, or count proxies with --trusted-hops"
	}
}

// majority finds a client that has more than half of the connections. Each window elects a candidate, by the vote of
// Boyer and Moore (MJRTY, 1991): if such a client is there, it is elected. The next window counts it.
type majority struct {
	since     time.Time // when the window began
	seen      int       // its connections so far
	candidate clientip.Client
	votes     int             // how many more are for the candidate than against it
	suspect   clientip.Client // the window before has elected it; without Addr: nobody
	hits      int             // connections of the suspect
}

// count adds the connections of a batch but those that are placed by a slot's own address. If a window ends with it, it returns
// its suspect, and how many of its connections that had; else zeros.
func (m *majority) count(batch []connection) (suspect clientip.Client, hits, of int) {
	if m.seen == 0 {
		m.since = time.Now()
	}
	for i := range batch {
		if !batch[i].addressed {
			m.add(&batch[i].client)
		}
	}
	if m.seen < windowLen {
		return clientip.Client{}, 0, 0
	}
	window := *m
	*m = majority{}
	if time.Since(window.since) > windowTime {
		return clientip.Client{}, 0, 0
	}
	m.suspect = window.candidate
	if !window.suspect.Addr.IsValid() {
		return clientip.Client{}, 0, 0
	}
	return window.suspect, window.hits, window.seen
}

func (m *majority) add(client *clientip.Client) {
	m.seen++
	if client.Key == m.suspect.Key {
		m.hits++
	}
	if m.votes == 0 {
		m.candidate = *client
	}
	if client.Key == m.candidate.Key {
		m.votes++
	} else {
		m.votes--
	}
}
