package forwarded

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/handfast/handfast/hash"
)

// Key says what a client is recognised by. The zero Key is its address.
type Key struct {
	Kind KeyKind
	Name string // of the header, say; kinds that take none have none
}

// KeyKind is a kind of key.
type KeyKind int

// The kinds of keys.
const (
	ByAddress KeyKind = iota // what proxies say of the client's address, or the peer's
	ByHeader                 // the value of a header, the last line's, which the nearest proxy wrote
)

// kind is all that master and worker know about a kind of key. A request in which it is not found is recognised by
// its client's address.
type kind struct {
	word string // before the colon, or alone
	name string // what follows the colon, as help says it; empty: no colon follows
	// valid tells whether a name is one.
	valid func(name string) bool
	// line returns the key that a header line has, a part of its value, and whether it has one. The last line that
	// has one counts, also if that is empty.
	line func(name, header, value string) (key string, found bool)
}

// kinds has a row for each kind of key.
var kinds = [...]kind{
	ByAddress: {word: "address"},
	ByHeader: {word: "header", name: "NAME", valid: IsToken[string], line: func(name, header, value string) (string, bool) {
		return value, isHeader(header, name)
	}},
}

// ParseKey reads "address" or, for instance, "header:NAME".
func ParseKey(text string) (Key, error) {
	word, name, named := strings.Cut(text, ":")
	for i, row := range kinds {
		if word == row.word && named == (row.name != "") && (!named || row.valid(name)) {
			return Key{KeyKind(i), name}, nil
		}
	}
	return Key{}, fmt.Errorf("forwarded: key %q: want %s", text, KeyForms())
}

// KeyForms says what ParseKey reads.
func KeyForms() string {
	var forms []string
	for _, row := range kinds {
		forms = append(forms, row.text(row.name))
	}
	return strings.Join(forms, " or ")
}

// String returns the key as ParseKey reads it.
func (k Key) String() string { return kinds[k.Kind].text(k.Name) }

func (row *kind) text(name string) string {
	if row.name == "" {
		return row.word
	}
	return row.word + ":" + name
}

// validate reports a name that is none.
func (k Key) validate() error {
	if k.Kind < 0 || int(k.Kind) >= len(kinds) {
		return fmt.Errorf("forwarded: kind of key %d is unknown", k.Kind)
	}
	if row := &kinds[k.Kind]; row.name == "" && k.Name != "" || row.name != "" && !row.valid(k.Name) {
		return fmt.Errorf("forwarded: %q is not the name of a %s", k.Name, row.word)
	}
	return nil
}

// Hash returns the key of a client that is named by what k recognises it by: an address, or a header's value.
func (k Key) Hash(client string, config hash.Config) (hash.Key, error) {
	if k.Kind != ByAddress {
		return config.Text(client), nil
	}
	addr, err := netip.ParseAddr(client)
	if err != nil {
		return 0, fmt.Errorf("%q is not an IP address", client)
	}
	return config.Key(addr), nil
}
