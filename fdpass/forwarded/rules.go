package forwarded

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
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
	// Hops is how many proxies there are between clients and us; 0: Trusted decides; at most MaxHops. The nearest has to be
	// trusted, and the client is the Hops-th address from the right, whatever those between are: nobody has to list them. There
	// must be no way to us with fewer proxies: whoever comes by it chooses the address.
	Hops int
}

// Validate says what is missing or contradicts itself.
func (r *Rules) Validate() error {
	switch {
	case r.Header != "" && !IsToken(r.Header):
		return fmt.Errorf("forwarded: %q is not the name of a header", r.Header)
	case r.Key.Kind != ByAddress && r.Header == "":
		return fmt.Errorf("forwarded: the key is %s, but no header is believed", r.Key)
	case r.Hops < 0 || r.Hops > MaxHops:
		return fmt.Errorf("forwarded: %d hops, want 0 to %d", r.Hops, MaxHops)
	case r.Hops > 0 && r.Header == "":
		return errors.New("forwarded: proxies are counted, but no header is believed")
	case r.Header != "" && len(r.Trusted) == 0:
		return errors.New("forwarded: a header names the client, but no proxy is trusted")
	}
	return r.Key.validate()
}

// Believe tells whether what a request says of its client counts, if it came from source.
func (r *Rules) Believe(source netip.Addr) bool { return r.Header != "" && r.Trusted.Contains(source) }

// add adds one line of the header that names the client's address. It keeps nothing of line.
func (r *Rules) add(c *chain, line string) {
	switch isForwarded := strings.EqualFold(r.Header, "Forwarded"); {
	case isForwarded && r.Hops > 0:
		c.hops.add(line, r.Hops, cutElement)
	case isForwarded:
		c.addForwarded(line, r.Trusted)
	case r.Hops > 0:
		c.hops.add(line, r.Hops, cutNode)
	default:
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
		fdpass.EnvTrustedHops + "=" + strconv.Itoa(r.Hops),
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
	if hops := getenv(fdpass.EnvTrustedHops); hops != "" { // an earlier master does not count
		if r.Hops, err = strconv.Atoi(hops); err != nil {
			return Rules{}, fmt.Errorf("forwarded: %s: %w", fdpass.EnvTrustedHops, err)
		}
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
