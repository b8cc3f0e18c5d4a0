package clientip

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// Client is the client that a connection is from.
type Client struct {
	Addr netip.Addr // the zero Addr when it is not known
	Key  hash.Key   // what the client is recognised by
	Told bool       // Key is of what its request brought, not of Addr

	Name    Name    // of the worker that its request's session is with, if ids name workers (Config.Names)
	Session Session // to which its request belongs, if sessions are looked for; else 0
}

// MaxHeaderTimeout is the longest HeaderTimeout.
const MaxHeaderTimeout = 24 * time.Hour

// Bounds of HeaderLimit. A socket's receive buffer holds 64 KiB without having been
// read (net.ipv4.tcp_rmem, 131072 by default, half of it for bookkeeping).
const (
	MinHeaderLimit = 1 << 10
	MaxHeaderLimit = 64 << 10
)

// Config says how clients are found. Start from DefaultConfig.
type Config struct {
	Hash          hash.Config     // makes keys
	Rules         forwarded.Rules // what of a request's head matters, and whose
	ProxyProtocol bool            // trusted peers begin with a PROXY header, others must not
	ProxyOptional forwarded.Trust // peers that may do without; the first bytes tell, or the header timeout if there are none
	LeaveProxy    bool            // the PROXY header is peeked, and the worker reads it
	HeaderTimeout time.Duration   // from accept until headers are complete
	HeaderLimit   int             // bytes of a PROXY header, and of a request's head
	Names         *Names          // reads what ids of sessions (Rules.Sessions) say; nil: nobody does
	// Sessions tells whether there are any, so that it is worth to look for one in every
	// request. It must not wait. nil: never.
	Sessions func() bool
}

// DefaultConfig believes nobody: a client is its peer address.
func DefaultConfig() Config {
	trusted, _ := forwarded.ParseTrust(forwarded.DefaultTrust)
	return Config{
		Hash:          hash.DefaultConfig(),
		Rules:         forwarded.Rules{Trusted: trusted},
		HeaderTimeout: 5 * time.Second,
		HeaderLimit:   16 << 10,
	}
}

// Validate says what is missing or out of range.
func (c *Config) Validate() error {
	switch {
	case c.HeaderTimeout <= 0 || c.HeaderTimeout > MaxHeaderTimeout:
		return fmt.Errorf("clientip: header timeout %v, want more than 0 and at most %v", c.HeaderTimeout, MaxHeaderTimeout)
	case c.HeaderLimit < MinHeaderLimit || c.HeaderLimit > MaxHeaderLimit:
		return fmt.Errorf("clientip: header limit %d, want %d to %d bytes", c.HeaderLimit, MinHeaderLimit, MaxHeaderLimit)
	case c.ProxyProtocol && len(c.Rules.Trusted) == 0:
		return errors.New("clientip: PROXY protocol without a trusted proxy")
	}
	return errors.Join(c.Hash.Validate(), c.Rules.Validate())
}

// KeyOf returns the key of a client that is named by what clients are recognised by.
func (c *Config) KeyOf(client string) (key hash.Key, err error) {
	return c.Rules.Keys.Hash(client, c.Hash)
}

// Why a client is not found. While more may come these are not final: ErrSilent,
// ErrPartial and ErrNoSession.
var (
	// ErrSilent: not a byte of a request has come, nor a whole PROXY header.
	ErrSilent = errors.New("clientip: no request within the header timeout (--header-timeout)")
	// ErrPartial: what has come is the beginning of a request's head.
	ErrPartial = errors.New("clientip: request head not complete within the header timeout (--header-timeout)")
	// ErrNoSession: the client is known, but not yet to which session its request belongs.
	ErrNoSession = errors.New("clientip: no request line yet")
	// ErrTooLarge: the head of a request is longer than the header limit.
	ErrTooLarge = errors.New("clientip: request head longer than the header limit (--header-limit)")
	// ErrProxyForbidden: a peer sent a PROXY header and is no trusted proxy.
	ErrProxyForbidden = errors.New("clientip: PROXY protocol header of a peer that is not trusted; if it is a proxy, add it to --trusted-proxies")
	// ErrGone: the client has reset the connection, or a trusted proxy has ended it
	// without a PROXY header, as health checks do.
	ErrGone = errors.New("clientip: connection ended by the client")
)

// Finder finds clients. It may be used by several goroutines.
type Finder struct {
	cfg     Config
	buffers sync.Pool // of *[]byte as Buffer makes them, for those that wait
}

// New checks the configuration.
func New(cfg Config) (*Finder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	f := &Finder{cfg: cfg}
	f.buffers.New = func() any { b := f.Buffer(); return &b }
	return f, nil
}

// Peeks tells whether anything else than the peer's address can matter. It may become
// true.
func (f *Finder) Peeks() bool {
	return f.cfg.ProxyProtocol || f.cfg.Rules.Looks() || f.looksForSessions()
}

func (f *Finder) looksForSessions() bool { return f.cfg.Sessions != nil && f.cfg.Sessions() }

// IsStranger tells whether a connection whose client is not known yet is of a peer that is no trusted
// proxy, although clients are named by such alone.
func (f *Finder) IsStranger(h *fdpass.Handoff) bool {
	byProxies := f.cfg.ProxyProtocol || f.cfg.Rules.Header != "" && !f.cfg.Rules.LooksAtAll()
	return byProxies && h.Flags&fdpass.FlagProxied == 0 && !f.cfg.Rules.Trusts(h.Source())
}

// Timeout is how long Wait may take.
func (f *Finder) Timeout() time.Duration {
	if !f.Peeks() && f.cfg.Sessions == nil {
		return 0
	}
	return f.cfg.HeaderTimeout
}

// Buffer returns a buffer for Now: what one goroutine peeks into.
func (f *Finder) Buffer() []byte {
	if !f.Peeks() {
		return nil
	}
	return make([]byte, f.cfg.HeaderLimit)
}

// Now finds a connection's client in what has arrived, without waiting or allocating. Nothing of
// that is left in the buffer: requests carry passwords and cookies.
// It borrows h.FD. A PROXY header is consumed, and h then carries what it says; so
// Now may be called again, also for a connection that comes back from a worker.
//
// After ErrSilent, ErrPartial and ErrNoSession it is worth to Wait. With the last one the
// client is valid without. All others but ErrGone mean that the connection must be refused.
//
// A connection that is placed already, by the address to which it came, belongs to nobody else whatever its requests say:
// of that only a PROXY header is looked at.
func (f *Finder) Now(h *fdpass.Handoff, placed bool, buffer []byte) (Client, error) {
	return f.find(h, placed, buffer, more)
}

// rest says what a connection that is looked at still has to come.
type rest int

const (
	more    rest = iota // perhaps something
	overdue             // nothing within the header timeout
	ended               // nothing
)

// find takes one step after the other.
func (f *Finder) find(h *fdpass.Handoff, placed bool, buffer []byte, rest rest) (Client, error) {
	source, skip := h.Source(), 0
	if f.cfg.ProxyProtocol && h.Flags&fdpass.FlagProxied == 0 {
		named, n, err := f.findProxyHeader(h, buffer, rest)
		switch {
		case err != nil:
			return Client{}, err
		case f.cfg.LeaveProxy:
			skip = n
			if named.IsValid() {
				source = named.Addr()
			}
		case n > 0:
			if err := takeProxyHeader(h, buffer[:n], named); err != nil {
				return Client{}, err
			}
			source = h.Source()
		}
	}
	if placed {
		return f.client(source), nil
	}
	look := f.cfg.Rules.Look(source)
	if sessions := f.looksForSessions(); look > forwarded.Nowhere || sessions {
		s := search{source, skip, rest == ended, look > forwarded.Nowhere, sessions}
		return f.findInHead(h.FD, buffer, s, forwarded.Head{Request: f.cfg.Rules.Request(), LineOnly: look < forwarded.AtHeaders})
	}
	return f.client(source), nil
}

func (f *Finder) client(addr netip.Addr) Client {
	if addr == fdpass.UnixPeer { // it has none
		addr = netip.Addr{}
	}
	return Client{Addr: addr, Key: f.cfg.Hash.Key(addr)}
}

// findProxyHeader peeks at the PROXY header of a trusted proxy, which is n bytes long and names the source of the
// connection, unless it is none. Of others it only looks whether they send one, which they must not. Without an error
// and with no bytes the connection is the peer's own.
func (f *Finder) findProxyHeader(h *fdpass.Handoff, buffer []byte, rest rest) (source netip.AddrPort, n int, err error) {
	data, err := peek(h.FD, buffer)
	if err != nil {
		return source, 0, err
	}
	defer clear(data)
	peer := h.Source()
	trusted, optional := f.cfg.Rules.Trusts(peer), f.cfg.ProxyOptional.Contains(peer) && !signed(data)
	source, n, err = parseProxy(data, f.cfg.HeaderLimit)
	switch {
	case !trusted && (err == nil || err == ErrBadProxyHeader):
		return netip.AddrPort{}, 0, ErrProxyForbidden
	case err == nil:
		return source, n, nil
	case err == errIncomplete && (rest == more || rest == overdue && !optional):
		return source, 0, ErrSilent
	case err == errIncomplete && trusted && rest == ended && len(data) == 0:
		return source, 0, ErrGone // a health check, most likely
	case !trusted, optional:
		return source, 0, nil
	case err == errIncomplete:
		return source, 0, ErrBadProxyHeader
	default:
		return source, 0, err
	}
}

// takeProxyHeader consumes the PROXY header of a trusted proxy, as many bytes as buffer has, and writes what it says
// into h, within the gate of package reexec.
func takeProxyHeader(h *fdpass.Handoff, buffer []byte, source netip.AddrPort) error {
	reexec.Lock.MustHold()
	defer clear(buffer)
	if source.IsValid() {
		h.Client = source
	}
	h.Flags |= fdpass.FlagProxied
	if err := discard(h.FD, buffer); err != nil {
		return err
	}
	if tlvs := tlvsOf(buffer); len(tlvs) <= fdpass.MaxDetails {
		h.Details = fdpass.Details(tlvs)
	}
	return nil
}

// search is what the head of a request is looked for with.
type search struct {
	source   netip.Addr // where its connection is from, as far as is known
	skip     int        // bytes before it that are no part of it
	ended    bool       // what has arrived is all that will
	needed   bool       // the client is not known without it
	sessions bool       // it may name one
}

// findInHead looks into the head of the request. The client is found without it if that is not needed and
// might only name a session.
func (f *Finder) findInHead(fd int, buffer []byte, s search, head forwarded.Head) (Client, error) {
	peeked, err := peek(fd, buffer)
	if err != nil {
		return Client{}, err
	}
	defer clear(peeked)
	if len(peeked) < s.skip {
		return Client{}, ErrGone // else it is still there
	}
	source, data := s.source, peeked[s.skip:]
	progress := head.Scan(data)
	full := len(peeked) == len(buffer)
	switch {
	case progress == forwarded.Complete:
		named := head.Client(source, f.cfg.Hash)
		client := Client{Addr: named.Addr, Key: named.Key, Told: named.Told, Name: f.nameIn(&head)}
		if s.sessions {
			client.Session = sessionIn(head.URI)
		}
		return client, nil
	case progress == forwarded.NotHTTP, s.ended && !full, full && head.LineOnly:
		return f.client(source), nil
	case !s.needed:
		return f.client(source), ErrNoSession
	case full:
		return Client{}, ErrTooLarge
	case progress == forwarded.Nothing:
		return Client{}, ErrSilent
	default:
		return Client{}, ErrPartial
	}
}

// nameIn returns the worker that a request's session is with, which is none if no id of it names one.
func (f *Finder) nameIn(head *forwarded.Head) Name {
	if f.cfg.Names != nil {
		for token := range head.Tokens {
			if name, found := f.cfg.Names.Name(token); found {
				return name
			}
		}
	}
	return Name{}
}
