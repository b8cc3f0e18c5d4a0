package forwarded

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/handfast/handfast/hash"
)

// Key says where in a request there is what a client is recognised by, or what names its session. The zero Key is the
// client's address.
type Key struct {
	Kind KeyKind
	Name string // of the header, say; kinds that take none have none
}

// KeyKind is a kind of key.
type KeyKind int

// The kinds of keys.
const (
	ByAddress  KeyKind = iota // what proxies say of the client's address, or the peer's
	ByHeader                  // the value of a header
	ByCookie                  // the value of a cookie
	ByQuery                   // the value of a parameter in the target's query
	ByPath                    // a segment of the target's path
	ByEngineIO                // the session id of Engine.IO, which is a parameter
)

// kind is all that master and worker know about a kind of key. A request in which it is not found is recognised by
// its client's address.
type kind struct {
	word string // before the colon, or alone
	name string // what follows the colon, as help says it; empty: no colon follows
	// What it is for: keys of clients, ids of sessions. If a proxy must have set it, it is a key only if the request came
	// from one: clients would choose their slot.
	key, session, byProxy bool
	// valid tells whether a name is one.
	valid func(name string) bool
	// line returns what a header line has of it, a part of its value, and whether it has any; nil: no line does. The first line
	// that has it counts, or the last one, also if it is empty.
	line  func(name, header, value string) (id string, found bool)
	first bool
	// target returns what the target of the request line has of it, percent-decoded, empty if nothing; nil: no target does.
	target func(name, target string) string
}

// kinds has a row for each kind of key.
var kinds = [...]kind{
	ByAddress: {word: "address", key: true},
	ByHeader: {word: "header", name: "NAME", key: true, session: true, byProxy: true, valid: IsToken[string],
		line: func(name, header, value string) (string, bool) { return value, isHeader(header, name) }}, // the nearest proxy wrote the last one
	ByCookie: {word: "cookie", name: "NAME", key: true, session: true, valid: IsToken[string], first: true,
		line: func(name, header, value string) (string, bool) {
			if !isHeader(header, "Cookie") {
				return "", false
			}
			return cookie(name, value)
		}},
	ByQuery:    {word: "query", name: "NAME", key: true, session: true, valid: isQueryName, target: parameter},
	ByPath:     {word: "path", name: "TEMPLATE", key: true, session: true, valid: isTemplate, target: segment},
	ByEngineIO: {word: "engine.io", session: true, target: func(_, target string) string { return parameter("sid", target) }},
}

// MaxKeys is how many keys there may be, and MaxSessions how many places where a session's id may be.
const (
	MaxKeys     = 4
	MaxSessions = 4
)

// Keys are what clients are recognised by: the first that a request has, and if it has none its client's address, which is
// not among them.
type Keys []Key

// Sessions are where a request may have its session's id: the first that names a worker counts.
type Sessions []Key

// ParseKeys reads a list with commas, of "address", which can only be the last, and for instance "header:NAME".
func ParseKeys(list string) (keys Keys, err error) {
	entries := strings.Split(list, ",")
	for i, entry := range entries {
		key, err := parse(entry, func(row *kind) bool { return row.key })
		switch {
		case err != nil:
			return nil, fmt.Errorf("forwarded: key %q: want %s", entry, KeyForms())
		case key == Key{} && i < len(entries)-1:
			return nil, fmt.Errorf("forwarded: keys %q: what follows address would never count, since each client has one", list)
		case key != Key{}:
			keys = append(keys, key)
		}
	}
	if len(keys) > MaxKeys {
		return nil, fmt.Errorf("forwarded: %d keys, want at most %d", len(keys), MaxKeys)
	}
	return keys, nil
}

// ParseSessions reads a list with commas, of for instance "cookie:NAME"; the empty list is none.
func ParseSessions(list string) (all Sessions, err error) {
	for entry := range strings.SplitSeq(list, ",") {
		if list == "" {
			break
		}
		source, err := parse(entry, func(row *kind) bool { return row.session })
		if err != nil {
			return nil, fmt.Errorf("forwarded: session %q: want %s", entry, SessionForms())
		}
		all = append(all, source)
	}
	if len(all) > MaxSessions {
		return nil, fmt.Errorf("forwarded: %d places of a session's id, want at most %d", len(all), MaxSessions)
	}
	return all, nil
}

func parse(text string, fits func(*kind) bool) (Key, error) {
	word, name, named := strings.Cut(text, ":")
	for i := range kinds {
		row := &kinds[i]
		if word == row.word && fits(row) && named == (row.name != "") && (!named || row.valid(name)) {
			return Key{KeyKind(i), name}, nil
		}
	}
	return Key{}, fmt.Errorf("forwarded: %q is none", text)
}

// KeyForms says what an entry of ParseKeys is.
func KeyForms() string { return forms(func(row *kind) bool { return row.key }) }

// SessionForms says what an entry of ParseSessions is.
func SessionForms() string { return forms(func(row *kind) bool { return row.session }) }

func forms(fits func(*kind) bool) string {
	var forms []string
	for i := range kinds {
		if row := &kinds[i]; fits(row) {
			forms = append(forms, row.text(row.name))
		}
	}
	return strings.Join(forms, " or ")
}

// String returns the keys as ParseKeys reads them, without the address if there is another one.
func (k Keys) String() string {
	if len(k) == 0 {
		return Key{}.String()
	}
	return join(k)
}

// String returns the places as ParseSessions reads them.
func (s Sessions) String() string { return join(s) }

func join(keys []Key) string {
	var words []string
	for _, key := range keys {
		words = append(words, key.String())
	}
	return strings.Join(words, ",")
}

// InTarget returns what the target of a request line has of the key, percent-decoded; empty: nothing. It borrows target.
func (k Key) InTarget(target string) string {
	if in := kinds[k.Kind].target; in != nil {
		return in(k.Name, target)
	}
	return ""
}

// String returns the key as ParseKeys or ParseSessions reads it.
func (k Key) String() string { return kinds[k.Kind].text(k.Name) }

func (row *kind) text(name string) string {
	if row.name == "" {
		return row.word
	}
	return row.word + ":" + name
}

// validate reports a key that is none of those that fit.
func (k Key) validate(fits func(*kind) bool) error {
	if k.Kind < 0 || int(k.Kind) >= len(kinds) {
		return fmt.Errorf("forwarded: kind of key %d is unknown", k.Kind)
	}
	if _, err := parse(k.String(), fits); err != nil || k.Kind != ByPath && strings.Contains(k.Name, ",") {
		return fmt.Errorf("forwarded: %q is not the name of a %s", k.Name, kinds[k.Kind].word)
	}
	return nil
}

// Hash returns the key of a client that is named by what the keys recognise it by: an address if that is all, else a text such as a
// cookie's value.
func (k Keys) Hash(client string, config hash.Config) (hash.Key, error) {
	if len(k) > 0 {
		return config.Text(client), nil
	}
	addr, err := netip.ParseAddr(client)
	if err != nil {
		return 0, fmt.Errorf("%q is not an IP address", client)
	}
	return config.Key(addr), nil
}
