package forwarded

import (
	"bytes"
	"unsafe"
)

// Progress is what is known of a connection that may be an HTTP/1 request.
type Progress int

const (
	Nothing  Progress = iota // no byte of a request yet
	Partial                  // so far it is the head of a request
	Complete                 // the whole head, to its blank line
	NotHTTP                  // it is not, whatever else comes
)

// Head reads the head of an HTTP/1 request (RFC 9112) as far as it says who the
// client is. It borrows what it scans.
type Head struct {
	Request
	LineOnly bool   // look at nothing behind the request line
	URI      string // the target of the request line, if it is one; borrowed
}

// Scan reads what has arrived. It looks at no byte behind the blank line, and its
// result, if not Nothing or Partial, is the same however much more comes.
//
// A head with a line that is none does not count as HTTP: folded lines, space around
// names, NUL and bare CR are what request smuggling is made of, and proxies do not let
// them through. A bare LF ends a line (RFC 9112, section 2.2).
func (h *Head) Scan(data []byte) Progress {
	for len(data) > 0 && (data[0] == '\r' || data[0] == '\n') {
		data = data[1:] // empty lines before a request (the same section)
	}
	if len(data) == 0 {
		return Nothing
	}
	line, rest, whole := cutLine(data)
	if found := requestLine(line, whole); found != Complete {
		return found
	}
	_, target, _ := bytes.Cut(line, []byte(" "))
	target, _, _ = bytes.Cut(target, []byte(" "))
	h.URI = text(target)
	h.Target(h.URI)
	if h.LineOnly {
		return Complete
	}
	for {
		line, rest, whole = cutLine(rest)
		switch {
		case !whole:
			return Partial
		case len(line) == 0:
			return Complete
		case !h.field(line):
			return NotHTTP
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
func requestLine(line []byte, whole bool) Progress {
	method, rest, found := bytes.Cut(line, []byte(" "))
	switch {
	case !IsToken(method): // of any length: proxies let it through
		return NotHTTP
	case !found:
		return unless(whole)
	}
	target, version, found := bytes.Cut(rest, []byte(" "))
	switch {
	case hasControls(target), found && len(target) == 0:
		return NotHTTP
	case !found:
		return unless(whole)
	}
	const want = "HTTP/1."
	if n := min(len(version), len(want)); string(version[:n]) != want[:n] {
		return NotHTTP
	}
	minor := version[min(len(version), len(want)):]
	switch {
	case len(minor) > 0 && (minor[0] < '0' || minor[0] > '9'):
		return NotHTTP
	case whole && len(minor) == 1:
		return Complete
	case !whole && (len(minor) < 2 || len(minor) == 2 && minor[1] == '\r'):
		return Partial
	default:
		return NotHTTP
	}
}

// unless is what a line is that lacks something at its end.
func unless(whole bool) Progress {
	if whole {
		return NotHTTP
	}
	return Partial
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
func (h *Head) field(line []byte) bool {
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found || !IsToken(name) || bytes.IndexByte(value, 0) >= 0 || bytes.IndexByte(value, '\r') >= 0 {
		return false
	}
	h.Header(text(name), text(value))
	return true
}

// text returns b as a string without a copy. It must not outlive the call that b
// was passed to: the bytes change under it.
func text(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b))
}
