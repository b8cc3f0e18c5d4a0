package forwarded

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/handfast/handfast/fdpass"
)

// DefaultHeader is what most proxies write.
const DefaultHeader = "X-Forwarded-For"

// Rules say which header names the client, and whose word counts.
type Rules struct {
	Header string // that names the client's address; empty: headers are not believed
	// Key is what clients are recognised by. A proxy must set or remove it, if it is not the address, or clients
	// choose their key themselves.
	Key     Key
	Trusted Trust
}

// Validate says what is missing or contradicts itself.
func (r *Rules) Validate() error {
	switch {
	case r.Header != "" && !IsToken(r.Header):
		return fmt.Errorf("forwarded: %q is not the name of a header", r.Header)
	case r.Key.Kind != ByAddress && r.Header == "":
		return fmt.Errorf("forwarded: the key is %s, but no header is believed", r.Key)
	case r.Header != "" && len(r.Trusted) == 0:
		return errors.New("forwarded: a header names the client, but no proxy is trusted")
	}
	return r.Key.validate()
}

// Believe tells whether what a request says of its client counts, if it came from source.
func (r *Rules) Believe(source netip.Addr) bool { return r.Header != "" && r.Trusted.Contains(source) }

// add adds one line of the header that names the client's address. It keeps nothing of line.
func (r *Rules) add(c *chain, line string) {
	if strings.EqualFold(r.Header, "Forwarded") {
		c.addForwarded(line, r.Trusted)
	} else {
		c.addList(line, r.Trusted)
	}
}

// Environ returns the rules as environment variables, by which the master tells its workers.
func (r *Rules) Environ() []string {
	if r.Header == "" {
		return []string{fdpass.EnvBehindProxy + "=false"}
	}
	return []string{
		fdpass.EnvBehindProxy + "=true",
		fdpass.EnvProxyHeader + "=" + r.Header,
		fdpass.EnvTrustedProxies + "=" + r.Trusted.String(),
		fdpass.EnvKey + "=" + r.Key.String(),
	}
}

// FromEnviron returns the rules that Environ has written, and rules that believe no
// header when there are none.
func FromEnviron(getenv func(string) string) (r Rules, err error) {
	if getenv(fdpass.EnvBehindProxy) != "true" {
		return Rules{}, nil
	}
	r.Header = getenv(fdpass.EnvProxyHeader)
	if r.Trusted, err = ParseTrust(getenv(fdpass.EnvTrustedProxies)); err != nil {
		return Rules{}, err
	}
	if r.Key, err = ParseKey(getenv(fdpass.EnvKey)); err != nil {
		return Rules{}, err
	}
	return r, r.Validate()
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
