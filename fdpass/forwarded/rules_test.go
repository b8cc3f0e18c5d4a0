package forwarded

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/hash"
)

func TestClient(t *testing.T) {
	for _, v := range []struct {
		name, header, peer string
		lines              []string
		want               string
	}{
		{"nobody is believed", "", "10.0.0.1", []string{"203.0.113.66"}, "10.0.0.1"},
		{"peer is no proxy", DefaultHeader, "192.0.2.1", []string{"203.0.113.66"}, "192.0.2.1"},
		{"peer is nobody", DefaultHeader, "", []string{"203.0.113.66"}, ""},
		{"proxy", DefaultHeader, "10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"IPv4-mapped proxy", DefaultHeader, "::ffff:10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"IPv6 proxy", DefaultHeader, "fd00::1", []string{"192.0.2.1", "10.0.0.1"}, "192.0.2.1"},
		{"small letters", "x-forwarded-for", "10.0.0.1", []string{"203.0.113.66, 192.0.2.1"}, "192.0.2.1"},
		{"no line", DefaultHeader, "10.0.0.1", nil, "10.0.0.1"},
		{"nobody is named", DefaultHeader, "10.0.0.1", []string{"unknown"}, "10.0.0.1"},
		{"health check of a proxy", DefaultHeader, "10.0.0.1", []string{"10.0.0.2"}, "10.0.0.2"},
		{"RFC 7239", "Forwarded", "10.0.0.1", []string{"for=192.0.2.1"}, "192.0.2.1"},
		{"RFC 7239, small letters", "forwarded", "10.0.0.1", []string{"for=192.0.2.1"}, "192.0.2.1"},
		{"nginx", "X-Real-IP", "10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"nginx, IPv6", "X-Real-IP", "10.0.0.1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"nginx, Unix socket", "X-Real-IP", "10.0.0.1", []string{"unix:"}, "10.0.0.1"},
		{"nginx behind an invented line", "X-Real-IP", "10.0.0.1", []string{"203.0.113.66", "192.0.2.1"}, "192.0.2.1"},
		{"Cloudflare", "CF-Connecting-IP", "10.0.0.1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"Cloudflare, no port", "CF-Connecting-IP", "10.0.0.1", []string{" 192.0.2.1 "}, "192.0.2.1"},
	} {
		r := Rules{Header: v.header, Trusted: trust(t, proxies)}
		request := r.Request()
		for _, line := range v.lines {
			request.Header(v.header, line)
		}
		if got := request.Client(addr(v.peer), hash.Config{}).Addr; got != addr(v.want) {
			t.Errorf("%s: %q from %q is %v, want %q", v.name, v.lines, v.peer, got, v.want)
		}
	}
}

func TestValidate(t *testing.T) {
	trusted := trust(t, "private")
	for _, v := range []struct {
		rules Rules
		want  string // in the error; empty: there is none
	}{
		{Rules{}, ""},
		{Rules{Trusted: trusted}, ""},
		{Rules{Header: "Forwarded", Trusted: trusted}, ""},
		{Rules{Header: DefaultHeader, Keys: byHeader("X-User"), Trusted: trusted}, ""},
		{Rules{Header: "X Forwarded", Trusted: trusted}, `"X Forwarded"`},
		{Rules{Header: "Forwarded:", Trusted: trusted}, `"Forwarded:"`},
		{Rules{Header: "Forwarded", Keys: byHeader("X-User\r\n"), Trusted: trusted}, `"X-User\r\n"`},
		{Rules{Keys: byHeader("X-User"), Trusted: trusted}, "no header is believed"},
		{Rules{Keys: Keys{{ByCookie, "id"}, {ByQuery, "id"}, {ByPath, "/{id}"}}, Sessions: Sessions{{ByHeader, "Id"}, {Kind: ByEngineIO}}}, ""},
		{Rules{Keys: Keys{{ByCookie, "i d"}}}, `"i d"`},
		{Rules{Keys: Keys{{ByQuery, "i,d"}}}, `"i,d"`},
		{Rules{Keys: Keys{{ByPath, "/id"}}}, `"/id"`},
		{Rules{Keys: Keys{{}}}, "address"},
		{Rules{Keys: Keys{{Kind: ByEngineIO}}}, "engine.io"},
		{Rules{Keys: Keys{{Kind: 99}}}, "99"},
		{Rules{Keys: make(Keys, MaxKeys+1)}, "5 keys"},
		{Rules{Sessions: Sessions{{}}}, "address"},
		{Rules{Sessions: make(Sessions, MaxSessions+1)}, "5 places"},
		{Rules{Header: "Forwarded"}, "no proxy is trusted"},
		{Rules{Header: "Forwarded", Trusted: trusted, Hops: MaxHops}, ""},
		{Rules{Header: "Forwarded", Trusted: trusted, Hops: MaxHops + 1}, "9 hops, want 0 to 8"},
		{Rules{Header: "Forwarded", Trusted: trusted, Hops: -1}, "-1 hops"},
		{Rules{Header: "Forwarded", Hops: 1}, "no proxy is trusted"},
		{Rules{Trusted: trusted, Hops: 1}, "no header is believed"},
	} {
		err := v.rules.Validate()
		if (err != nil) != (v.want != "") || err != nil && !strings.Contains(err.Error(), v.want) {
			t.Errorf("%+v: error %v, want %q", v.rules, err, v.want)
		}
	}
}

// TestEnviron: a worker has the rules of its master.
func TestEnviron(t *testing.T) {
	for _, v := range []struct {
		rules Rules
		want  []string
	}{
		{Rules{}, []string{"HANDFAST_BEHIND_PROXY=false"}},
		{Rules{Header: "Forwarded", Trusted: trust(t, "192.0.2.1,::ffff:10.0.0.0/104")}, []string{
			"HANDFAST_BEHIND_PROXY=true", "HANDFAST_PROXY_HEADER=Forwarded", "HANDFAST_TRUSTED_PROXIES=192.0.2.1/32,10.0.0.0/8", "HANDFAST_TRUSTED_HOPS=0", "HANDFAST_KEY=address",
		}},
		{Rules{Header: "X-Real-IP", Keys: byHeader("X-User"), Trusted: trust(t, "loopback")}, []string{
			"HANDFAST_BEHIND_PROXY=true", "HANDFAST_PROXY_HEADER=X-Real-IP", "HANDFAST_TRUSTED_PROXIES=127.0.0.0/8,::1/128", "HANDFAST_TRUSTED_HOPS=0", "HANDFAST_KEY=header:X-User",
		}},
		{Rules{Header: DefaultHeader, Keys: byHeader("address"), Trusted: trust(t, "::/0")}, []string{
			"HANDFAST_BEHIND_PROXY=true", "HANDFAST_PROXY_HEADER=X-Forwarded-For", "HANDFAST_TRUSTED_PROXIES=::/0", "HANDFAST_TRUSTED_HOPS=0", "HANDFAST_KEY=header:address",
		}},
		{Rules{Keys: Keys{{ByCookie, "id"}, {ByPath, "/*/{id}"}}, Sessions: Sessions{{Kind: ByEngineIO}, {ByHeader, "Mcp-Session-Id"}}}, []string{
			"HANDFAST_BEHIND_PROXY=false", "HANDFAST_KEY=cookie:id,path:/*/{id}", "HANDFAST_SESSION=engine.io,header:Mcp-Session-Id",
		}},
	} {
		environ := v.rules.Environ()
		if !slices.Equal(environ, v.want) {
			t.Errorf("%+v is %q, want %q", v.rules, environ, v.want)
		}
		got, err := FromEnviron(getenv(environ))
		if err != nil || got.Header != v.rules.Header || !slices.Equal(got.Keys, v.rules.Keys) || !slices.Equal(got.Sessions, v.rules.Sessions) || !slices.Equal(got.Trusted, v.rules.Trusted) {
			t.Errorf("%q is %+v, error %v, want %+v", environ, got, err, v.rules)
		}
	}
}

func getenv(environ []string) func(string) string {
	return func(name string) string {
		for _, entry := range environ {
			if value, found := strings.CutPrefix(entry, name+"="); found {
				return value
			}
		}
		return ""
	}
}

// TestFromEnviron: without a master nothing is believed, and half a set of rules is an
// error, not fewer proxies or another key.
func TestFromEnviron(t *testing.T) {
	const on, header, trusted, key = "HANDFAST_BEHIND_PROXY=true", "HANDFAST_PROXY_HEADER=Forwarded", "HANDFAST_TRUSTED_PROXIES=private", "HANDFAST_KEY=address"
	for _, v := range []struct {
		name    string
		environ []string
		header  string
		fails   bool
	}{
		{"no master", nil, "", false},
		{"off", []string{"HANDFAST_BEHIND_PROXY=false", header, trusted, key}, "", false},
		{"not on", []string{header, trusted, key}, "", false},
		{"on", []string{on, header, trusted, key}, "Forwarded", false},
		{"no proxies", []string{on, header, key}, "", true},
		{"wrong proxies", []string{on, header, "HANDFAST_TRUSTED_PROXIES=privat", key}, "", true},
		{"wrong header", []string{on, "HANDFAST_PROXY_HEADER=a b", trusted, key}, "", true},
		{"no key", []string{on, header, trusted}, "", true},
		{"wrong key", []string{on, header, trusted, "HANDFAST_KEY=header:"}, "", true},
	} {
		r, err := FromEnviron(getenv(v.environ))
		if (err != nil) != v.fails || err == nil && r.Header != v.header {
			t.Errorf("%s: %+v, error %v", v.name, r, err)
		}
	}
}

// TestIsToken: RFC 9110, section 5.6.2.
func TestIsToken(t *testing.T) {
	const delimiters = "\"(),/:;<=>?@[\\]{}"
	for c := range 256 {
		want := c > ' ' && c < 0x7f && !strings.ContainsRune(delimiters, rune(c))
		for _, b := range [][]byte{{byte(c)}, {'a', byte(c)}, {byte(c), 'a'}} {
			if IsToken(b) != want || IsToken(string(b)) != want {
				t.Errorf("%q is a token: %v, want %v", b, IsToken(b), want)
			}
		}
	}
	if IsToken("") || IsToken[[]byte](nil) {
		t.Error("nothing is a token")
	}
}

// TestUnixPeer: who comes by a Unix socket is a trusted proxy, and nobody else without an address is, however wide the trust and
// whatever clients write.
func TestUnixPeer(t *testing.T) {
	const client = "203.0.113.9"
	all, err := ParseTrust("0.0.0.0/0,::/0")
	if err != nil {
		t.Fatal(err)
	}
	one, err := ParseTrust("192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, trust := range []Trust{all, one} {
		rules := Rules{Header: DefaultHeader, Trusted: trust}
		for _, h := range []fdpass.Handoff{{Flags: fdpass.FlagUnix}, {Flags: fdpass.FlagUnix | fdpass.FlagProxied}} {
			request := rules.Request()
			request.Header(rules.Header, client)
			if got := request.Client(h.Source(), hash.DefaultConfig()); !rules.Trusts(h.Source()) || trust.Contains(h.Source()) || len(trust) == 1 && got.Addr.String() != client {
				t.Errorf("%+v: %+v", h, got)
			}
		}
		for _, h := range []fdpass.Handoff{{}, {Flags: fdpass.FlagProxied}, {Client: netip.AddrPortFrom(fdpass.UnixPeer, 1)}} {
			request := rules.Request()
			request.Header(rules.Header, client)
			if got := request.Client(h.Source(), hash.DefaultConfig()); rules.Trusts(h.Source()) || rules.Believe(h.Source()) || got.Addr.IsValid() {
				t.Errorf("%+v is trusted: %+v", h, got)
			}
		}
	}
	// A header that has its name is another address.
	rules := Rules{Header: DefaultHeader, Trusted: one}
	request := rules.Request()
	request.Header(rules.Header, fdpass.UnixPeer.String())
	if got := request.Client(fdpass.UnixPeer, hash.DefaultConfig()); got.Addr == fdpass.UnixPeer {
		t.Errorf("from a header: %v", got.Addr)
	}
	// Without a header a Unix socket's peer is nobody.
	request = rules.Request()
	if got := request.Client(fdpass.UnixPeer, hash.DefaultConfig()); got.Addr.IsValid() || got.Key != hash.DefaultConfig().Key(netip.Addr{}) {
		t.Errorf("without a header: %+v", got)
	}
}
