package forwarded

import (
	"net/netip"
	"strings"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
)

// Client is the client that a request is from.
type Client struct {
	Addr netip.Addr // the zero Addr when it is not known
	Key  hash.Key   // what it is recognised by
	Told bool       // Key is of what the request brought, not of Addr
}

// Request collects what the head of one request says of its client. The master, which reads bytes, and a worker, for which
// package http has read them, add the target, and each header line, those of one name in their order.
// Start from Rules.Request.
type Request struct {
	rules *Rules
	chain chain // of all lines with the client's address
	keys  [MaxKeys]string
	ids   [MaxSessions]string // both are borrowed, of what Rules has, in its order
}

// Request returns a request of which nothing is known. It borrows r.
func (r *Rules) Request() Request { return Request{rules: r} }

// Target adds the target of the request line. It borrows it until Client and Tokens have returned.
func (r *Request) Target(target string) {
	for k, id := range r.wanted {
		if kinds[k.Kind].target != nil {
			*id = k.InTarget(target)
		}
	}
}

// Header adds a header line. It borrows value until Client and Tokens have returned.
func (r *Request) Header(name, value string) {
	if isHeader(name, r.rules.Header) {
		r.rules.add(&r.chain, value)
	}
	for k, id := range r.wanted {
		row := &kinds[k.Kind]
		if row.line == nil || row.first && *id != "" {
			continue
		}
		if found, has := row.line(k.Name, name, trim(value)); has {
			*id = found
		}
	}
}

// wanted calls yield with each place that is looked into, and with what was found there so far. It is an iterator.
func (r *Request) wanted(yield func(k Key, id *string) bool) {
	for i, k := range r.rules.Keys {
		if !yield(k, &r.keys[i]) {
			return
		}
	}
	for i, k := range r.rules.Sessions {
		if !yield(k, &r.ids[i]) {
			return
		}
	}
}

// Client returns the client of the request if that came from source: source itself, unless it is a trusted proxy.
func (r *Request) Client(source netip.Addr, config hash.Config) Client {
	believed := r.rules.Believe(source)
	if named := r.chain.client(); believed && named.IsValid() {
		source = named
	}
	for i, k := range r.rules.Keys {
		if r.keys[i] != "" && (believed || !kinds[k.Kind].byProxy) {
			return Client{known(source), config.Text(r.keys[i]), true}
		}
	}
	return Client{Addr: known(source), Key: config.Key(known(source))}
}

// known is a source as a client's address: that of a Unix socket's peer is not known.
func known(source netip.Addr) netip.Addr {
	if source == fdpass.UnixPeer {
		return netip.Addr{}
	}
	return source
}

// Tokens calls yield with each token that an id of the request's session has, in the order of Rules.Sessions. It is an
// iterator.
func (r *Request) Tokens(yield func(Token) bool) {
	for i := range r.rules.Sessions {
		if t, found := TokenIn(r.ids[i]); found && !yield(t) {
			return
		}
	}
}

// isHeader compares the names of headers.
func isHeader(name, want string) bool {
	return len(name) == len(want) && strings.EqualFold(name, want)
}
