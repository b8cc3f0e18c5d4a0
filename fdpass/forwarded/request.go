package forwarded

import (
	"net/netip"
	"strings"

	"github.com/handfast/handfast/hash"
)

// Client is the client that a request is from.
type Client struct {
	Addr netip.Addr // the zero Addr when it is not known
	Key  hash.Key   // what it is recognised by
}

// Request collects what the head of one request says of its client. The master, which reads bytes, and a worker, for which
// package http has read them, add each header line, those of one name in their order.
// Start from Rules.Request.
type Request struct {
	rules *Rules
	chain chain  // of all lines with the client's address
	key   string // borrowed
}

// Request returns a request of which nothing is known. It borrows r.
func (r *Rules) Request() Request { return Request{rules: r} }

// Header adds a header line. It borrows value until Client has returned.
func (r *Request) Header(name, value string) {
	if isHeader(name, r.rules.Header) {
		r.rules.add(&r.chain, value)
	}
	if line := kinds[r.rules.Key.Kind].line; line != nil {
		if key, found := line(r.rules.Key.Name, name, trim(value)); found {
			r.key = key
		}
	}
}

// Client returns the client of the request if that came from source: source itself, unless it is a trusted proxy.
func (r *Request) Client(source netip.Addr, config hash.Config) Client {
	if !r.rules.Believe(source) {
		return Client{source, config.Key(source)}
	}
	if named := r.chain.client(); named.IsValid() {
		source = named
	}
	if r.key != "" {
		return Client{source, config.Text(r.key)}
	}
	return Client{source, config.Key(source)}
}

// isHeader compares the names of headers.
func isHeader(name, want string) bool {
	return len(name) == len(want) && strings.EqualFold(name, want)
}
