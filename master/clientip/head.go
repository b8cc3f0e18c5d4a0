package clientip

import (
	"bytes"
	"strings"

	"github.com/handfast/handfast/fdpass/forwarded"
)

// progress is what is known of a connection that may be an HTTP/1 request.
type progress int

const (
	nothing  progress = iota // no byte of a request yet
	partial                  // so far it is the head of a request
	complete                 // the whole head, to its blank line
	notHTTP                  // it is not, whatever else comes
)

// head reads the head of an HTTP/1 request (RFC 9112) as far as it says who the
// client is. It borrows what it scans.
type head struct {
	rules    *forwarded.Rules
	sessions bool            // look for one in the request line
	lineOnly bool            // and at nothing behind that
	chain    forwarded.Chain // of all lines with the client's address
	key      []byte          // of the last line with the key, which the nearest proxy added
	session  Session         // that the request line names
}

// scan reads what has arrived. It looks at no byte behind the blank line, and its
// result, if not nothing or partial, is the same however much more comes.
//
// A head with a line that is none does not count as HTTP: folded lines, space around
// names, NUL and bare CR are what request smuggling is made of, and proxies do not let
// them through. A bare LF ends a line (RFC 9112, section 2.2).
func (h *head) scan(data []byte) progress {
	for len(data) > 0 && (data[0] == '\r' || data[0] == '\n') {
		data = data[1:] // empty lines before a request (the same section)
	}
	if len(data) == 0 {
		return nothing
	}
	line, rest, whole := cutLine(data)
	if found := requestLine(line, whole); found != complete {
		return found
	}
	if h.sessions {
		h.session = sessionIn(line)
	}
	if h.lineOnly {
		return complete
	}
	for {
		line, rest, whole = cutLine(rest)
		switch {
		case !whole:
			return partial
		case len(line) == 0:
			return complete
		case !h.field(line):
			return notHTTP
		}
	}
}

// cutLine cuts behind the first line, which it returns without its end.
func cutLine(data []byte) (line, rest []byte, whole bool) {
	i := bytes.IndexByte(data, '\n')
	if i < 0 {
		return data, nil, false
	}
	return bytes.TrimSuffix(data[:i], []byte("\r")), data[i+1:], true
}

// requestLine tells whether a line, or what has come of it, is "METHOD TARGET HTTP/1.x".
func requestLine(line []byte, whole bool) progress {
	method, rest, found := bytes.Cut(line, []byte(" "))
	switch {
	case !forwarded.IsToken(method): // of any length: proxies let it through
		return notHTTP
	case !found:
		return unless(whole)
	}
	target, version, found := bytes.Cut(rest, []byte(" "))
	switch {
	case hasControls(target), found && len(target) == 0:
		return notHTTP
	case !found:
		return unless(whole)
	}
	const want = "HTTP/1."
	if n := min(len(version), len(want)); string(version[:n]) != want[:n] {
		return notHTTP
	}
	minor := version[min(len(version), len(want)):]
	switch {
	case len(minor) > 0 && (minor[0] < '0' || minor[0] > '9'):
		return notHTTP
	case whole && len(minor) == 1:
		return complete
	case !whole && (len(minor) < 2 || len(minor) == 2 && minor[1] == '\r'):
		return partial
	default:
		return notHTTP
	}
}

// unless is what a line is that lacks something at its end.
func unless(whole bool) progress {
	if whole {
		return notHTTP
	}
	return partial
}

func hasControls(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return true
		}
	}
	return false
}

// field reads one header line, and tells whether it is one.
func (h *head) field(line []byte) bool {
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found || !forwarded.IsToken(name) || bytes.IndexByte(value, 0) >= 0 || bytes.IndexByte(value, '\r') >= 0 {
		return false
	}
	if equal(name, h.rules.Header) {
		h.rules.Add(&h.chain, text(value))
	}
	if equal(name, h.rules.Key) {
		h.key = bytes.Trim(value, " \t")
	}
	return true
}

// equal compares the names of headers.
func equal(name []byte, header string) bool {
	return len(name) == len(header) && strings.EqualFold(text(name), header)
}
