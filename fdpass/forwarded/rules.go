package forwarded

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/handfast/handfast/fdpass"
)

// DefaultHeader is what most proxies write.
const DefaultHeader = "X-Forwarded-For"

// Rules say which header names the client, and whose word counts.
type Rules struct {
	Header string // that names the client's address; empty: headers are not believed
	// Keys are what clients are recognised by. A header as a key has to be set or removed by a proxy, and counts only from one. The
	// other keys are the client's own: it chooses its slot by them, as far as it knows how they are hashed (hash.Config.Seed).
	Keys     Keys
	Sessions Sessions // where requests have ids by which workers know their sessions
	// Anywhere: a request that names no session and brings no key belongs to any slot, since it can only begin a session.
	Anywhere bool
	Trusted  Trust
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
	case r.Header == "" && slices.ContainsFunc(r.Keys, func(k Key) bool { return k.Kind == ByHeader }):
		return fmt.Errorf("forwarded: the key is %s, but no header is believed", r.Keys)
	case len(r.Keys) > MaxKeys || len(r.Sessions) > MaxSessions:
		return fmt.Errorf("forwarded: %d keys and %d places of a session's id, want at most %d and %d", len(r.Keys), len(r.Sessions), MaxKeys, MaxSessions)
	case r.Anywhere && len(r.Sessions) == 0:
		return errors.New("forwarded: new sessions may go anywhere, but no session comes back to its worker")
	case r.Hops < 0 || r.Hops > MaxHops:
		return fmt.Errorf("forwarded: %d hops, want 0 to %d", r.Hops, MaxHops)
	case r.Hops > 0 && r.Header == "":
		return errors.New("forwarded: proxies are counted, but no header is believed")
	case r.Header != "" && len(r.Trusted) == 0:
		return errors.New("forwarded: a header names the client, but no proxy is trusted")
	}
	for _, k := range r.Keys {
		if err := k.validate(func(row *kind) bool { return row.key && row.word != "address" }); err != nil {
			return err
		}
	}
	for _, k := range r.Sessions {
		if err := k.validate(func(row *kind) bool { return row.session }); err != nil {
			return err
		}
	}
	return nil
}

// Believe tells whether what a request says of its client counts, if it came from source.
func (r *Rules) Believe(source netip.Addr) bool { return r.Header != "" && r.Trusts(source) }

// Trusts tells whether source is a trusted proxy: one of Trusted, or who may connect to a Unix socket of the master's
// (fdpass.UnixPeer). The zero Addr is not.
func (r *Rules) Trusts(source netip.Addr) bool {
	return source == fdpass.UnixPeer || r.Trusted.Contains(source)
}

// Look is how much of a request's head can matter.
type Look int

// What can matter of it.
const (
	Nowhere   Look = iota
	AtTarget       // the request line, of which the target
	AtHeaders      // all of it
)

// Look tells how much of the head matters of requests from source.
func (r *Rules) Look(source netip.Addr) Look {
	if r.Believe(source) {
		return AtHeaders
	}
	return r.lookAtAll()
}

// LooksAtAll tells whether something of the head matters of requests from anybody, and not only from proxies.
func (r *Rules) LooksAtAll() bool { return r.lookAtAll() > Nowhere }

// Looks tells whether anything of any head matters.
func (r *Rules) Looks() bool { return r.Header != "" || r.LooksAtAll() }

// lookAtAll is Look for those who are not believed.
func (r *Rules) lookAtAll() (look Look) {
	for _, k := range r.Keys {
		if row := &kinds[k.Kind]; !row.byProxy {
			look = max(look, row.look())
		}
	}
	for _, k := range r.Sessions {
		look = max(look, kinds[k.Kind].look())
	}
	return look
}

func (row *kind) look() Look {
	switch {
	case row.line != nil:
		return AtHeaders
	case row.target != nil:
		return AtTarget
	}
	return Nowhere
}

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
	env := []string{fdpass.EnvBehindProxy + "=" + strconv.FormatBool(r.Header != "")}
	if r.Header != "" {
		env = append(env,
			fdpass.EnvProxyHeader+"="+r.Header,
			fdpass.EnvTrustedProxies+"="+r.Trusted.String(),
			fdpass.EnvTrustedHops+"="+strconv.Itoa(r.Hops))
	}
	if r.Header != "" || len(r.Keys) > 0 {
		env = append(env, fdpass.EnvKey+"="+r.Keys.String())
	}
	if len(r.Sessions) > 0 {
		env = append(env, fdpass.EnvSession+"="+r.Sessions.String())
		if r.Anywhere {
			env = append(env, fdpass.EnvNewSessions+"="+anywhere)
		}
	}
	return env
}

// anywhere is what the environment says of Rules.Anywhere.
const anywhere = "anywhere"

// FromEnviron returns the rules that Environ has written, and rules by which no head matters when there are none.
func FromEnviron(getenv func(string) string) (r Rules, err error) {
	if getenv(fdpass.EnvBehindProxy) == "true" {
		r.Header = getenv(fdpass.EnvProxyHeader)
		if r.Trusted, err = ParseTrust(getenv(fdpass.EnvTrustedProxies)); err != nil {
			return Rules{}, err
		}
		if hops := getenv(fdpass.EnvTrustedHops); hops != "" { // an earlier master does not count
			if r.Hops, err = strconv.Atoi(hops); err != nil {
				return Rules{}, fmt.Errorf("forwarded: %s: %w", fdpass.EnvTrustedHops, err)
			}
		}
	}
	if keys := getenv(fdpass.EnvKey); keys != "" || r.Header != "" {
		if r.Keys, err = ParseKeys(keys); err != nil {
			return Rules{}, err
		}
	}
	if r.Sessions, err = ParseSessions(getenv(fdpass.EnvSession)); err != nil {
		return Rules{}, err
	}
	r.Anywhere = len(r.Sessions) > 0 && getenv(fdpass.EnvNewSessions) == anywhere
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
