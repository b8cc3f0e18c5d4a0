package forwarded

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// DefaultHeader is what most proxies write.
const DefaultHeader = "X-Forwarded-For"

// Rules say which header names the client, and whose word counts.
type Rules struct {
	Header string // that names the client's address; empty: headers are not believed
	// Key is the header whose value is the client's key; empty: the address is. A
	// proxy must set or remove it, or clients choose their key themselves.
	Key     string
	Trusted Trust
}

// Validate says what is missing or contradicts itself.
func (r *Rules) Validate() error {
	switch {
	case r.Header != "" && !IsToken(r.Header):
		return fmt.Errorf("forwarded: %q is not the name of a header", r.Header)
	case r.Key != "" && !IsToken(r.Key):
		return fmt.Errorf("forwarded: %q is not the name of a header", r.Key)
	case r.Key != "" && r.Header == "":
		return errors.New("forwarded: a header is the key, but no header is believed")
	case r.Header != "" && len(r.Trusted) == 0:
		return errors.New("forwarded: a header names the client, but no proxy is trusted")
	}
	return nil
}

// Add adds one line of the header to a chain. It keeps nothing of line.
func (r *Rules) Add(c *Chain, line string) {
	if strings.EqualFold(r.Header, "Forwarded") {
		c.addForwarded(line, r.Trusted)
	} else {
		c.addList(line, r.Trusted)
	}
}

// Client returns the client of a request with these lines of the header, if peer
// sent it: peer itself unless it is a trusted proxy that names another.
func (r *Rules) Client(peer netip.Addr, lines []string) netip.Addr {
	if r.Header == "" || !r.Trusted.Contains(peer) {
		return peer
	}
	var chain Chain
	for _, line := range lines {
		r.Add(&chain, line)
	}
	if client := chain.Client(); client.IsValid() {
		return client
	}
	return peer
}

// Environment variables by which the master tells its workers the rules. They have the
// names of its flags.
const (
	envBehindProxy = "HANDFAST_BEHIND_PROXY"
	envHeader      = "HANDFAST_PROXY_HEADER"
	envTrusted     = "HANDFAST_TRUSTED_PROXIES"
	envKey         = "HANDFAST_KEY"
)

// Environ returns the rules as environment variables.
func (r *Rules) Environ() []string {
	if r.Header == "" {
		return []string{envBehindProxy + "=false"}
	}
	return []string{
		envBehindProxy + "=true",
		envHeader + "=" + r.Header,
		envTrusted + "=" + r.Trusted.String(),
		envKey + "=" + FormatKey(r.Key),
	}
}

// FromEnviron returns the rules that Environ has written, and rules that believe no
// header when there are none.
func FromEnviron(getenv func(string) string) (r Rules, err error) {
	if getenv(envBehindProxy) != "true" {
		return Rules{}, nil
	}
	r.Header = getenv(envHeader)
	if r.Trusted, err = ParseTrust(getenv(envTrusted)); err != nil {
		return Rules{}, err
	}
	if r.Key, err = ParseKey(getenv(envKey)); err != nil {
		return Rules{}, err
	}
	return r, r.Validate()
}

// What a client can be recognised by.
const (
	KeyAddress = "address"
	keyHeader  = "header:"
)

// ParseKey returns the header that "header:NAME" names, and none for "address".
func ParseKey(text string) (header string, err error) {
	if text == KeyAddress {
		return "", nil
	}
	header, found := strings.CutPrefix(text, keyHeader)
	if !found || !IsToken(header) {
		return "", fmt.Errorf("forwarded: key %q: want %s or %sNAME", text, KeyAddress, keyHeader)
	}
	return header, nil
}

// FormatKey is the inverse of ParseKey.
func FormatKey(header string) string {
	if header == "" {
		return KeyAddress
	}
	return keyHeader + header
}

// IsToken tells whether s can be the name of a header or a method (RFC 9110,
// section 5.6.2).
func IsToken[T string | []byte](s T) bool {
	for i := range len(s) {
		if !tokenChars[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

var tokenChars = func() (set [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		set[c] = true
	}
	return set
}()
