package worker

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
)

// examples are requests that a kind of key tells apart, or does not.
var examples = map[string][]string{
	"address": {
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.66\r\nX-User: me\r\nx-forwarded-for: 2001:db8::1, 10.0.0.2\r\n\r\n",
	},
	"header:X-User": {
		"GET / HTTP/1.1\r\nHost: a\r\nX-User: me\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-User: you\r\nx-user:\t me \t\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-User: you\r\nX-User:\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Users: \xff\r\nX-User: \xff\r\n\r\n",
		"POST /?X-User=you HTTP/1.0\nX-User: me\n\nX-User: you\n",
	},
	"cookie:id": {
		"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; id=me\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nX-Forwarded-For: 192.0.2.1\r\ncookie: id=\"me\";id=you\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nCookie: id\r\nCookie:\r\n\r\n",
	},
	"query:id": {
		"GET /?a=b&id=me HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://a/?i%64=m%65+1 HTTP/1.1\r\nHost: a\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	},
	"path:/echo/*/{id}": {
		"GET /echo/1/me/xhr HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /echo/%2F/m%65?a HTTP/1.1\r\nHost: a\r\n\r\n",
	},
	"header:X-User,cookie:id,query:id": {
		"GET /?id=you HTTP/1.1\r\nHost: a\r\nX-User: me\r\nCookie: id=you\r\n\r\n",
	},
	"header:host": {
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost:\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
	},
}

// FuzzAgree: the worker recognises the client of a request as the master has, given the same bytes of the same peer,
// by each kind of key, also where proxies are counted.
func FuzzAgree(f *testing.F) {
	var kinds []string
	for key, heads := range examples {
		word, _, _ := strings.Cut(key, ":")
		kinds = append(kinds, word)
		for _, head := range heads {
			for _, peer := range []string{"10.0.0.1", "::ffff:10.0.0.1", "198.51.100.1", "fe80::1%1"} {
				f.Add(key, "X-Forwarded-For", uint8(0), peer, head)
				f.Add(key, "X-Forwarded-For", uint8(2), peer, head)
				f.Add(key, "Forwarded", uint8(1), peer, strings.ReplaceAll(head, "X-Forwarded-For: ", "Forwarded: for="))
			}
		}
	}
	for form := range strings.SplitSeq(forwarded.KeyForms(), " or ") {
		if word, _, _ := strings.Cut(form, ":"); !slices.Contains(kinds, word) {
			f.Errorf("no example of a key %s", form)
		}
	}
	trusted, err := forwarded.ParseTrust(forwarded.DefaultTrust)
	fdtest.Check(f, err)
	cfg := clientip.DefaultConfig()
	cfg.Hash = hash.Config{Seed: 7, IPv4Prefix: 24, IPv6Prefix: 56}
	f.Fuzz(func(t *testing.T, key, header string, hops uint8, peer, head string) {
		cfg := cfg
		cfg.Rules = forwarded.Rules{Header: header, Trusted: trusted, Hops: int(hops) % (forwarded.MaxHops + 1)}
		var keyErr error
		cfg.Rules.Keys, keyErr = forwarded.ParseKeys(key)
		from, err := netip.ParseAddr(peer)
		if err != nil || keyErr != nil || cfg.Validate() != nil || header == "" {
			t.Skip()
		}
		finder, err := clientip.New(cfg)
		fdtest.Check(t, err)
		r := bothRead(t, &cfg.Rules, head)
		r.RemoteAddr = net.JoinHostPort(peer, "1")

		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		fdtest.Check(t, err)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		if _, err := unix.Write(pair[1], []byte(head)); err != nil {
			t.Fatal(err)
		}
		h := fdpass.Handoff{FD: pair[0], Client: netip.AddrPortFrom(from.Unmap(), 1)} // as the master has accepted it
		placed, err := finder.Now(&h, false, finder.Buffer())
		if err != nil {
			t.Fatalf("the master finds nobody: %v", err)
		}
		if got := clientOf(&cfg.Rules, cfg.Hash, r); got.Addr != placed.Addr || got.Key != placed.Key {
			t.Errorf("%q from %s is of %v, key %v; the master placed it for %v, key %v", head, peer, got.Addr, got.Key, placed.Addr, placed.Key)
		}
	})
}

// bothRead returns a request as package http reads it. It skips what either side takes for none, for what is
// placed by its peer's address then, and lines that package http keeps to itself or adds.
func bothRead(t *testing.T, rules *forwarded.Rules, head string) *http.Request {
	t.Helper()
	if len(head) >= clientip.MinHeaderLimit {
		t.Skip("too long")
	}
	scanned := forwarded.Head{Request: rules.Request()}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil || scanned.Scan([]byte(head)) != forwarded.Complete {
		t.Skip("no request")
	}
	names := []string{rules.Header, "Cookie"}
	for _, key := range rules.Keys {
		names = append(names, key.Name)
	}
	for _, name := range names {
		switch http.CanonicalHeaderKey(name) {
		case "Transfer-Encoding", "Trailer", "Content-Length", "Cache-Control":
			t.Skip("http.Request has other fields for it")
		case "Host":
			if r.URL.Host != "" {
				t.Skip("for package http the host is that of the target (RFC 9112, section 3.2.2)")
			}
		}
	}
	return r
}
