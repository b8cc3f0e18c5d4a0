package clientip

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/master/reexec"
)

// Headers of the PROXY protocol, from 192.0.2.7:56324.
const (
	proxyV1  = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
	proxyV1b = "PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"
	unknown1 = "PROXY UNKNOWN\r\n"
	proxy2   = signatureV2 + "\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb"
	proxy2b  = signatureV2 + "\x21\x21\x00\x29\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xdc\x04\x01\xbb\x04\x00\x02xy"
	// The same without its TLV, and LOCAL.
	without2b = signatureV2 + "\x21\x21\x00\x24\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xdc\x04\x01\xbb"
	local2    = signatureV2 + "\x20\x00\x00\x00"
)

const request = "GET / HTTP/1.1\r\n"

// nginxHead is what nginx sends with the usual proxy_set_header lines, for Firefox.
const nginxHead = "GET /chat?room=lobby HTTP/1.1\r\n" +
	"Host: example.org\r\n" +
	"X-Real-IP: 192.0.2.1\r\n" +
	"X-Forwarded-For: 192.0.2.1\r\n" +
	"X-Forwarded-Proto: https\r\n" +
	"Connection: close\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
	"Accept-Language: de,en-US;q=0.7,en;q=0.3\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\n" +
	"X-Session: 0f1e2d3c\r\n\r\n"

// xff is a head that names a client.
func xff(client string, more ...string) string {
	return request + "X-Forwarded-For: " + client + "\r\n" + strings.Join(append(more, ""), "\r\n") + "\r\n"
}

// rulesOf returns rules with the default header and these trusted proxies.
func rulesOf(t testing.TB, trusted, key string) forwarded.Rules {
	rules := forwarded.Rules{Header: forwarded.DefaultHeader, Trusted: trust(t, trusted)}
	if key != "" {
		rules.Keys = forwarded.Keys{{Kind: forwarded.ByHeader, Name: key}}
	}
	return rules
}

func speaksProxy(cfg *Config) { cfg.ProxyProtocol = true }

// TestNowAddress: when no more than the peer's address can matter, nothing is peeked.
func TestNowAddress(t *testing.T) {
	for _, v := range []struct {
		name    string
		trusted string
		peeks   bool
		peer    string
	}{
		{"no headers", loopback, false, here},
		{"no headers, IPv6", loopback, false, "2001:db8::1"},
		{"peer is no proxy", elsewhere, true, here},
		{"peer is no proxy, IPv6", elsewhere, true, "fe80::1%1"},
		{"peer is not known", elsewhere, true, ""},
	} {
		rules := rulesOf(t, v.trusted, "")
		if !v.peeks {
			rules.Header = ""
		}
		f := finder(t, rules, nil)
		h := fdpass.Handoff{FD: -1, Client: netip.AddrPortFrom(addr(v.peer), 1)}
		before := h
		client, err := findNow(f, &h, f.Buffer())
		if err != nil || client != f.from(v.peer) || h != before {
			t.Errorf("%s: %v, %v, handoff %v, want %v", v.name, client, err, h, f.from(v.peer))
		}
		if f.Peeks() != v.peeks || (f.Timeout() > 0) != v.peeks || (len(f.Buffer()) > 0) != v.peeks {
			t.Errorf("%s: peeks %v, timeout %v, buffer of %d", v.name, f.Peeks(), f.Timeout(), len(f.Buffer()))
		}
	}
}

// moment is what has arrived of a connection, and what Now makes of it.
type moment struct {
	name    string
	trusted string // whose word counts
	key     string // the header that is the client's key
	limit   int    // the header limit, MinHeaderLimit if 0
	sent    string

	client string // "" for that of the peer
	text   string // what the key is made of, "" for the client's address
	err    error
	flags  fdpass.Flags
	taken  int // bytes that are consumed
}

// checkMoments asks twice: what has not been consumed is there again, and what has been is
// remembered. Then a worker reads what is left.
func checkMoments(t *testing.T, change func(*Config), moments []moment) {
	for _, v := range moments {
		t.Run(v.name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			f := finder(t, rulesOf(t, v.trusted, v.key), func(cfg *Config) {
				cfg.HeaderLimit = max(v.limit, MinHeaderLimit)
				if change != nil {
					change(cfg)
				}
			})
			p := connect(t)
			peer := p.Client
			p.send(t, v.sent)
			var want Client
			if v.err == nil {
				if want = f.from(here); v.client != "" {
					want = f.from(v.client)
				}
				if v.text != "" {
					want.Key, want.Told = f.cfg.Hash.Text(v.text), true
				}
			}
			buffer := f.Buffer()
			for range 2 {
				client, err := findNow(f, &p.Handoff, buffer)
				if err != v.err || client != want {
					t.Errorf("%v, %v, want %v, %v", client, err, want, v.err)
				}
				clear(buffer) // nothing is kept of it
			}
			if p.Flags != v.flags {
				t.Errorf("flags %b, want %b", p.Flags, v.flags)
			}
			if p.Flags == 0 && p.Client != peer {
				t.Errorf("peer %v has become %v", peer, p.Client)
			}
			p.reads(t, v.sent[v.taken:])
		})
	}
}

// TestNowHead: the head of a request, which is peeked and stays.
func TestNowHead(t *testing.T) {
	const body = "X-Forwarded-For: 203.0.113.66\r\n\r\n"
	long := request + "A: " + strings.Repeat("b", MinHeaderLimit)
	checkMoments(t, nil, []moment{
		{name: "peer is no proxy", trusted: elsewhere, sent: xff("203.0.113.66")},
		{name: "peer is no proxy, with a key", trusted: elsewhere, key: "X-Session", sent: xff("203.0.113.66", "X-Session: a")},
		{name: "peer is no proxy, silent", trusted: elsewhere},
		{name: "peer is no proxy, half a head", trusted: elsewhere, sent: "GET"},
		{name: "peer is no proxy, long head", trusted: elsewhere, sent: long},

		{name: "nginx", trusted: loopback, sent: nginxHead, client: "192.0.2.1"},
		{name: "body", trusted: loopback, sent: xff("192.0.2.1") + body, client: "192.0.2.1"},
		{name: "two requests", trusted: loopback, sent: xff("192.0.2.1") + xff("203.0.113.66"), client: "192.0.2.1"},
		{name: "body over the limit", trusted: loopback, sent: xff("192.0.2.1") + strings.Repeat("b", 3*MinHeaderLimit), client: "192.0.2.1"},
		{name: "IPv6 with port", trusted: loopback, sent: xff("[2001:db8::1]:80, 127.0.0.9"), client: "2001:db8::1"},
		{name: "only proxies", trusted: loopback, sent: xff("127.0.0.9, 127.0.0.8"), client: "127.0.0.9"},
		{name: "nobody is named", trusted: loopback, sent: xff("unknown")},
		{name: "no header", trusted: loopback, sent: request + "\r\n"},
		{name: "no HTTP", trusted: loopback, sent: "\x16\x03\x01"},
		{name: "no HTTP, folded", trusted: loopback, sent: xff("203.0.113.66,", " 203.0.113.66")},
		{name: "no HTTP, long", trusted: loopback, sent: "\x16" + long},

		{name: "key", trusted: loopback, key: "X-Session", sent: xff("192.0.2.1", "x-session:  a b "), client: "192.0.2.1", text: "a b"},
		{name: "key without address", trusted: loopback, key: "X-Session", sent: request + "X-Session: a\r\n\r\n", text: "a"},
		{name: "key is the header's text", trusted: loopback, key: "X-Forwarded-For", sent: xff("192.0.2.1"), client: "192.0.2.1", text: "192.0.2.1"},
		{name: "no key: the address", trusted: loopback, key: "X-Session", sent: xff("192.0.2.1"), client: "192.0.2.1"},
		{name: "empty key: the address", trusted: loopback, key: "X-Session", sent: xff("192.0.2.1", "X-Session: \t"), client: "192.0.2.1"},
		{name: "no key and no address", trusted: loopback, key: "X-Session", sent: request + "\r\n"},
		{name: "no HTTP with a key", trusted: loopback, key: "X-Session", sent: request + "X-Session: a\r\nb\r\n\r\n"},

		{name: "silent", trusted: loopback, err: ErrSilent},
		{name: "only empty lines", trusted: loopback, sent: "\r\n\r\n", err: ErrSilent},
		{name: "half a head", trusted: loopback, sent: "GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n", err: ErrPartial},
		{name: "one byte", trusted: loopback, sent: "G", err: ErrPartial},
		{name: "all but one byte", trusted: loopback, sent: nginxHead[:len(nginxHead)-1], err: ErrPartial},

		{name: "as long as the limit, and incomplete", trusted: loopback, sent: long[:MinHeaderLimit], err: ErrTooLarge},
		{name: "one byte less", trusted: loopback, sent: long[:MinHeaderLimit-1], err: ErrPartial},
		{name: "longer than the limit", trusted: loopback, sent: long + "\r\n\r\n", err: ErrTooLarge},
		{name: "as long as the limit, and complete", trusted: loopback, sent: long[:MinHeaderLimit-4] + "\r\n\r\n"},
		{name: "the last byte is over the limit", trusted: loopback, sent: long[:MinHeaderLimit-3] + "\r\n\r\n", err: ErrTooLarge},
		{name: "very many empty lines", trusted: loopback, sent: strings.Repeat("\n", MinHeaderLimit), err: ErrTooLarge},
		{name: "a higher limit", trusted: loopback, limit: 2 * MinHeaderLimit, sent: long + "\r\n\r\n"},
	})
}

// TestNowProxy: the header of the PROXY protocol, which is consumed to its last byte.
func TestNowProxy(t *testing.T) {
	const proxied = fdpass.FlagProxied
	checkMoments(t, func(cfg *Config) { cfg.ProxyProtocol, cfg.Rules.Header = true, "" }, []moment{
		{name: "version 1", trusted: loopback, sent: proxyV1, client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "version 1, IPv6", trusted: loopback, sent: proxyV1b, client: "2001:db8::7", flags: proxied, taken: len(proxyV1b)},
		{name: "version 2", trusted: loopback, sent: proxy2, client: "192.0.2.7", flags: proxied, taken: len(proxy2)},
		{name: "version 2, IPv6 and a TLV", trusted: loopback, sent: proxy2b, client: "2001:db8::7", flags: proxied, taken: len(proxy2b)},
		{name: "a request behind it", trusted: loopback, sent: proxyV1 + xff("203.0.113.66"), client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "another header behind it", trusted: loopback, sent: proxy2 + proxyV1b, client: "192.0.2.7", flags: proxied, taken: len(proxy2)},
		{name: "empty lines behind it", trusted: loopback, sent: proxyV1 + "\r\n\n", client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "one byte behind it", trusted: loopback, sent: proxy2 + "\x16", client: "192.0.2.7", flags: proxied, taken: len(proxy2)},
		{name: "much behind it", trusted: loopback, sent: proxy2 + strings.Repeat("b", 3*MinHeaderLimit), client: "192.0.2.7", flags: proxied, taken: len(proxy2)},
		{name: "LOCAL: a health check", trusted: loopback, sent: local2 + request, flags: proxied, taken: len(local2)},
		{name: "UNKNOWN", trusted: loopback, sent: unknown1 + request, flags: proxied, taken: len(unknown1)},
		{name: "from one trusted proxy to the next", trusted: loopback + ",192.0.2.0/24", sent: proxyV1, client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},

		{name: "missing", trusted: loopback, sent: xff("203.0.113.66"), err: ErrNoProxyHeader},
		{name: "missing, one byte", trusted: loopback, sent: "G", err: ErrNoProxyHeader},
		{name: "bad", trusted: loopback, sent: "PROXY TCP4 192.0.2.7\r\n", err: ErrBadProxyHeader},
		{name: "bad, version 2", trusted: loopback, sent: signatureV2 + "\x31\x11\x00\x0c", err: ErrBadProxyHeader},
		{name: "over the limit", trusted: loopback, sent: signatureV2 + "\x21\x11\x03\xf1", err: ErrBadProxyHeader},
		{name: "at the limit", trusted: loopback, sent: signatureV2 + "\x21\x11\x03\xf0" + proxy2[16:] + strings.Repeat("\x00", 0x3f0-12) + "x", client: "192.0.2.7", flags: proxied, taken: MinHeaderLimit},
		{name: "silent", trusted: loopback, err: ErrSilent},
		{name: "one byte", trusted: loopback, sent: proxyV1[:1], err: ErrSilent},
		{name: "all but one byte", trusted: loopback, sent: proxyV1[:len(proxyV1)-1], err: ErrSilent},
		{name: "all but one byte, version 2", trusted: loopback, sent: proxy2b[:len(proxy2b)-1], err: ErrSilent},

		{name: "peer is no proxy", trusted: elsewhere, sent: xff("203.0.113.66")},
		{name: "peer is no proxy, one byte", trusted: elsewhere, sent: "\x16"},
		{name: "peer is no proxy, nearly a header", trusted: elsewhere, sent: "\r\n\r\nGET"},
		{name: "peer is no proxy, silent", trusted: elsewhere, err: ErrSilent},
		{name: "peer is no proxy, beginning of a header", trusted: elsewhere, sent: "PRO", err: ErrSilent},
		{name: "forbidden", trusted: elsewhere, sent: proxyV1, err: ErrProxyForbidden},
		{name: "forbidden, version 2", trusted: elsewhere, sent: proxy2 + request, err: ErrProxyForbidden},
		{name: "forbidden, LOCAL", trusted: elsewhere, sent: local2, err: ErrProxyForbidden},
		{name: "forbidden, UNKNOWN", trusted: elsewhere, sent: unknown1, err: ErrProxyForbidden},
		{name: "forbidden, bad", trusted: elsewhere, sent: "PROXY x\r\n", err: ErrProxyForbidden},
		{name: "forbidden, from whom it says", trusted: "192.0.2.0/24", sent: proxyV1, err: ErrProxyForbidden},
	})
}

// TestNowProxyOptional: who may do without a PROXY header is itself when something else comes, and a header counts as ever.
func TestNowProxyOptional(t *testing.T) {
	const proxied = fdpass.FlagProxied
	optional := func(cfg *Config) {
		cfg.ProxyProtocol, cfg.Rules.Header, cfg.ProxyOptional = true, "", trust(t, here)
	}
	checkMoments(t, optional, []moment{
		{name: "header", trusted: loopback, sent: proxyV1 + request, client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "no header", trusted: loopback, sent: request},
		{name: "no header, one byte", trusted: loopback, sent: "G"},
		{name: "nearly a header", trusted: loopback, sent: "\r\n\r\nGET"},
		{name: "a request that is believed no more than its peer", trusted: loopback, sent: xff("203.0.113.66")},
		{name: "beginning of a header", trusted: loopback, sent: "PRO", err: ErrSilent},
		{name: "half a header", trusted: loopback, sent: proxyV1[:9], err: ErrSilent},
		{name: "silent", trusted: loopback, err: ErrSilent},
		{name: "bad", trusted: loopback, sent: "PROXY x\r\n", err: ErrBadProxyHeader},
		{name: "not trusted", trusted: elsewhere, sent: proxy2, err: ErrProxyForbidden},
		{name: "not trusted, no header", trusted: elsewhere, sent: request},
	})
	checkMoments(t, func(cfg *Config) { optional(cfg); cfg.ProxyOptional = trust(t, elsewhere) }, []moment{
		{name: "somebody else may", trusted: loopback, sent: request, err: ErrNoProxyHeader},
	})
}

// TestNowLeave: a PROXY header that is left names the client, and so does the head behind it; nothing is consumed.
func TestNowLeave(t *testing.T) {
	const inner = loopback + ",192.0.2.0/24"
	checkMoments(t, func(cfg *Config) { cfg.ProxyProtocol, cfg.LeaveProxy = true, true }, []moment{
		{name: "version 1", trusted: loopback, sent: proxyV1 + request, client: "192.0.2.7"},
		{name: "version 2", trusted: loopback, sent: proxy2, client: "192.0.2.7"},
		{name: "version 2, IPv6 and a TLV", trusted: loopback, sent: proxy2b + "\x16", client: "2001:db8::7"},
		{name: "source is a proxy", trusted: inner, sent: proxyV1 + xff("203.0.113.66, 198.51.100.9"), client: "198.51.100.9"},
		{name: "source is a proxy, half a head", trusted: inner, sent: proxyV1 + "GET", err: ErrPartial},
		{name: "source is a proxy, silent", trusted: inner, sent: proxyV1, err: ErrSilent},
		{name: "source is a proxy, no HTTP", trusted: inner, sent: proxy2 + "\x16", client: "192.0.2.7"},
		{name: "LOCAL", trusted: loopback, sent: local2 + nginxHead, client: "192.0.2.1"},
		{name: "half", trusted: loopback, sent: proxyV1[:9], err: ErrSilent},
		{name: "missing", trusted: loopback, sent: request, err: ErrNoProxyHeader},
		{name: "peer is no proxy", trusted: elsewhere, sent: request},
		{name: "forbidden", trusted: elsewhere, sent: proxyV1, err: ErrProxyForbidden},
		{name: "both are longer than the limit", trusted: inner, sent: proxyV1 + request + "A: " + strings.Repeat("b", MinHeaderLimit), err: ErrTooLarge},
	})
}

// TestNowProxyAndHead: the head of a request counts if the PROXY header is from a proxy of
// proxies, and after one that names nobody.
func TestNowProxyAndHead(t *testing.T) {
	const proxied, inner = fdpass.FlagProxied, loopback + ",192.0.2.0/24"
	all := func(sent string) int { return len(sent) - len(nginxHead) }
	long := request + "A: " + strings.Repeat("b", MinHeaderLimit)
	checkMoments(t, speaksProxy, []moment{
		{name: "source is a client", trusted: loopback, sent: proxyV1 + xff("203.0.113.66"), client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "source is a client with a key", trusted: loopback, key: "X-Session", sent: proxyV1 + nginxHead, client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "source is a client, half a head", trusted: loopback, sent: proxyV1 + "GET", client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy", trusted: inner, sent: proxyV1 + xff("203.0.113.66, 198.51.100.9"), client: "198.51.100.9", flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy, version 2", trusted: inner, key: "X-Session", sent: proxy2 + xff("198.51.100.9", "X-Session: a"), client: "198.51.100.9", text: "a", flags: proxied, taken: len(proxy2)},
		{name: "source is a proxy that names nobody", trusted: inner, sent: proxyV1 + request + "\r\n", client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy, no HTTP", trusted: inner, sent: proxyV1 + "\x16", client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy, silent", trusted: inner, sent: proxyV1, err: ErrSilent, flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy, half a head", trusted: inner, sent: proxyV1 + "GET", err: ErrPartial, flags: proxied, taken: len(proxyV1)},
		{name: "source is a proxy, long head", trusted: inner, sent: proxyV1 + long, err: ErrTooLarge, flags: proxied, taken: len(proxyV1)},
		{name: "each has the limit for itself", trusted: inner, sent: proxyV1 + long[:MinHeaderLimit-4] + "\r\n\r\n", client: "192.0.2.7", flags: proxied, taken: len(proxyV1)},
		{name: "LOCAL", trusted: loopback, sent: local2 + nginxHead, client: "192.0.2.1", flags: proxied, taken: all(local2 + nginxHead)},
		{name: "UNKNOWN", trusted: loopback, sent: unknown1 + nginxHead, client: "192.0.2.1", flags: proxied, taken: all(unknown1 + nginxHead)},
		{name: "peer is no proxy", trusted: elsewhere, key: "X-Session", sent: nginxHead},
		{name: "missing", trusted: loopback, sent: nginxHead, err: ErrNoProxyHeader},
	})
}

// TestNowSource: the handoff carries the address and the port that the PROXY header names,
// and those of the peer when it names none.
func TestNowSource(t *testing.T) {
	f := finder(t, forwarded.Rules{Trusted: trust(t, loopback)}, speaksProxy)
	for sent, want := range map[string]string{proxyV1: "192.0.2.7:56324", proxyV1b: "[2001:db8::7]:56324", proxy2: "192.0.2.7:56324", proxy2b: "[2001:db8::7]:56324", local2: "", unknown1: ""} {
		p := connect(t)
		source := p.Client
		if want != "" {
			source = netip.MustParseAddrPort(want)
		}
		p.send(t, sent)
		if _, err := findNow(f, &p.Handoff, f.Buffer()); err != nil || p.Client != source {
			t.Errorf("%q: handoff of %v, %v, want %v", sent, p.Client, err, source)
		}
	}
}

// TestNowTLVs: the handoff carries what a PROXY header says beside addresses, if it is no more than a message can.
func TestNowTLVs(t *testing.T) {
	header := func(command, family string, block string) string {
		return signatureV2 + command + family + string([]byte{byte(len(block) >> 8), byte(len(block))}) + block
	}
	const addresses4 = "\xc0\x00\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb"
	unique := "\x05\x00\x03abc"
	longest := "\xe0" + string([]byte{byte((fdpass.MaxDetails - 3) >> 8), byte((fdpass.MaxDetails - 3) & 0xff)}) + strings.Repeat("v", fdpass.MaxDetails-3)
	f := finder(t, forwarded.Rules{Trusted: trust(t, loopback)}, speaksProxy)
	for name, v := range map[string]struct{ sent, want string }{
		"version 1":   {proxyV1, ""},
		"none":        {proxy2, ""},
		"IPv6":        {proxy2b, "\x04\x00\x02xy"},
		"IPv4":        {header("\x21", "\x11", addresses4+unique), unique},
		"no family":   {header("\x21", "\x00", unique), unique},
		"LOCAL":       {header("\x20", "\x11", addresses4+unique), ""},
		"as they are": {header("\x21", "\x11", addresses4+"\x05\xff"), "\x05\xff"},
		"longest":     {header("\x21", "\x11", addresses4+longest), longest},
		"too long":    {header("\x21", "\x11", addresses4+longest+"\x04"), ""},
	} {
		p := connect(t)
		p.send(t, v.sent+request)
		_, err := findNow(f, &p.Handoff, f.Buffer())
		if err != nil || string(p.Details) != v.want {
			t.Errorf("%s: details %.40q (%d bytes), %v, want %.40q", name, p.Details, len(p.Details), err, v.want)
		}
		p.reads(t, request)
	}
}

// TestNowEnded: a FIN alone is not looked for, that is what Wait does. A reset is found
// out about when everything before it has been read, which we do not (man 7 tcp).
func TestNowEnded(t *testing.T) {
	for _, v := range []struct {
		name     string
		proxy    bool
		sent     string
		fin, rst error
	}{
		{"silent", false, "", ErrSilent, ErrGone},
		{"half a head", false, "GET", ErrPartial, ErrPartial},
		{"whole head", false, xff("192.0.2.1"), nil, nil},
		{"PROXY, silent", true, "", ErrSilent, ErrGone},
		{"PROXY, half a header", true, proxyV1[:9], ErrSilent, ErrSilent},
		{"PROXY, whole header", true, unknown1, ErrSilent, ErrGone},
		{"PROXY and half a head", true, unknown1 + "GET", ErrPartial, ErrPartial},
	} {
		f := finder(t, rulesOf(t, loopback, ""), func(cfg *Config) { cfg.ProxyProtocol = v.proxy })
		for end, want := range map[string]error{"FIN": v.fin, "RST": v.rst} {
			p := connect(t)
			p.send(t, v.sent)
			if end == "FIN" {
				p.finish(t)
			} else {
				p.reset(t)
			}
			if client, err := findNow(f, &p.Handoff, f.Buffer()); err != want || (client == Client{}) != (want != nil) {
				t.Errorf("%s, %s: %v, %v, want %v", v.name, end, client, err, want)
			}
		}
	}
}

// TestNowAllocatesNothing: on the straight line, and nothing of what was peeked stays in the buffer.
func TestNowAllocatesNothing(t *testing.T) {
	const runs = 50
	for _, v := range []struct {
		name, sent, key, client string
		change                  func(*Config)
	}{
		{"address only", "", "", here, func(cfg *Config) { cfg.Rules.Header = "" }},
		{"peer is no proxy", "", "", here, func(cfg *Config) { cfg.Rules.Trusted = cfg.Rules.Trusted[1:] }},
		{"IPv4", xff("203.0.113.66, 192.0.2.1, 10.0.0.1"), "", "192.0.2.1", nil},
		{"IPv6 with port", xff(`203.0.113.66, "[2001:db8::1]:4711"`), "", "2001:db8::1", nil},
		{"RFC 7239", request + "Forwarded: for=\"[2001:db8::1]:4711\";proto=http, for=10.0.0.1\r\n\r\n", "", "2001:db8::1", func(cfg *Config) { cfg.Rules.Header = "Forwarded" }},
		{"nobody is named", xff("unknown, _hidden, unix:, -"), "", here, nil},
		{"no HTTP", "\x16\x03\x01", "", here, nil},
		{"key", nginxHead, "X-Session", "192.0.2.1", nil},
		{"PROXY protocol 1", proxyV1, "", "192.0.2.7", speaksProxy},
		{"PROXY protocol 1, IPv6", proxyV1b, "", "2001:db8::7", speaksProxy},
		{"PROXY protocol 2", proxy2, "", "192.0.2.7", speaksProxy},
		{"PROXY protocol 2, IPv6", without2b, "", "2001:db8::7", speaksProxy},
		{"PROXY protocol, left", proxy2b, "", "2001:db8::7", func(cfg *Config) { cfg.ProxyProtocol, cfg.LeaveProxy = true, true }},
		{"PROXY protocol, optional", "\x16", "", here, func(cfg *Config) {
			cfg.ProxyProtocol, cfg.Rules.Header, cfg.ProxyOptional = true, "", cfg.Rules.Trusted
		}},
		{"PROXY protocol, peer is no proxy", xff("203.0.113.66"), "", here, func(cfg *Config) { cfg.ProxyProtocol, cfg.Rules.Trusted = true, cfg.Rules.Trusted[1:] }},
	} {
		f := finder(t, rulesOf(t, loopback, v.key), v.change)
		p := connect(t)
		p.send(t, strings.Repeat(v.sent, runs+1)) // a PROXY header for each run; of others the first
		buffer, accepted := f.Buffer(), p.Handoff
		if n := testing.AllocsPerRun(runs, func() {
			h := accepted
			if client, err := findNow(f, &h, buffer); err != nil || client.Addr != addr(v.client) {
				t.Fatalf("%s: %v, %v, want %s", v.name, client, err, v.client)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", v.name, n)
		}
		if left := strings.Trim(string(buffer), "\x00"); left != "" {
			t.Errorf("%s: the buffer keeps %q", v.name, left)
		}
	}
}

// TestNowPartialAllocatesNothing: that a connection has to wait is found out on the straight line, too.
func TestNowPartialAllocatesNothing(t *testing.T) {
	f := finder(t, rulesOf(t, loopback, ""), nil)
	p := connect(t)
	p.send(t, nginxHead[:len(nginxHead)-2])
	buffer := f.Buffer()
	if n := testing.AllocsPerRun(50, func() {
		if _, err := findNow(f, &p.Handoff, buffer); err != ErrPartial {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if left := strings.Trim(string(buffer), "\x00"); left != "" {
		t.Errorf("the buffer keeps %q", left)
	}
}

// TestNowGone: what is no connection is gone, and does not wait.
func TestNowGone(t *testing.T) {
	f := finder(t, rulesOf(t, "::/0,0.0.0.0/0", ""), nil)
	h := fdpass.Handoff{FD: -1, Client: netip.AddrPortFrom(addr(here), 1)}
	if client, err := findNow(f, &h, f.Buffer()); err != ErrGone || client != (Client{}) {
		t.Errorf("%v, %v, want %v", client, err, ErrGone)
	}
}

func TestValidate(t *testing.T) {
	session := forwarded.Keys{{Kind: forwarded.ByHeader, Name: "X-Session"}}
	for _, v := range []struct {
		name   string
		change func(*Config)
		want   string // in the error; empty: there is none
	}{
		{"default", func(*Config) {}, ""},
		{"header", func(c *Config) { c.Rules.Header = "Forwarded" }, ""},
		{"key", func(c *Config) { c.Rules.Header, c.Rules.Keys = "Forwarded", session }, ""},
		{"PROXY protocol", speaksProxy, ""},
		{"nobody is trusted, nobody is believed", func(c *Config) { c.Rules.Trusted = nil }, ""},
		{"lowest limit", func(c *Config) { c.HeaderLimit = 1024 }, ""},
		{"highest limit", func(c *Config) { c.HeaderLimit = 65536 }, ""},
		{"shortest timeout", func(c *Config) { c.HeaderTimeout = 1 }, ""},
		{"no timeout", func(c *Config) { c.HeaderTimeout = 0 }, "header timeout 0s"},
		{"negative timeout", func(c *Config) { c.HeaderTimeout = -time.Second }, "header timeout -1s"},
		{"no limit", func(c *Config) { c.HeaderLimit = 0 }, "header limit 0, want 1024 to 65536"},
		{"low limit", func(c *Config) { c.HeaderLimit = 1023 }, "header limit 1023"},
		{"high limit", func(c *Config) { c.HeaderLimit = 65537 }, "header limit 65537"},
		{"PROXY protocol of nobody", func(c *Config) { c.ProxyProtocol, c.Rules.Trusted = true, nil }, "without a trusted proxy"},
		{"hash", func(c *Config) { c.Hash.IPv4Prefix = 33 }, "IPv4 prefix length 33"},
		{"rules", func(c *Config) { c.Rules.Keys = session }, "no header is believed"},
		{"hash and rules", func(c *Config) { c.Hash.IPv6Prefix, c.Rules.Keys = -1, session }, "no header is believed"},
	} {
		cfg := DefaultConfig()
		v.change(&cfg)
		f, err := New(cfg)
		if (err != nil) != (v.want != "") || (f == nil) != (err != nil) || err != nil && !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: error %v, want %q", v.name, err, v.want)
		}
	}
}

// TestDefault: nobody is believed until somebody says so, and then loopback, private and
// link-local ones.
func TestDefault(t *testing.T) {
	cfg := DefaultConfig()
	f, err := New(cfg)
	fdtest.Check(t, err)
	if f.Peeks() || f.Timeout() != 0 || cfg.HeaderTimeout != 5*time.Second || cfg.HeaderLimit != 16<<10 {
		t.Errorf("%+v, peeks %v, timeout %v", cfg, f.Peeks(), f.Timeout())
	}
	if got := cfg.Rules.Trusted.String(); got != trust(t, forwarded.DefaultTrust).String() || got == "" {
		t.Errorf("trusts %q", got)
	}
}

// TestErrors: each is another one, since callers compare them.
func TestErrors(t *testing.T) {
	all := []error{ErrSilent, ErrPartial, ErrTooLarge, ErrProxyForbidden, ErrGone, ErrNoProxyHeader, ErrBadProxyHeader}
	for i, a := range all {
		for _, b := range all[:i] {
			if errors.Is(a, b) || a.Error() == b.Error() {
				t.Errorf("%q and %q are the same", a, b)
			}
		}
	}
}

// BenchmarkNow finds the client of what nginx sends: a peek and a scan, the scan alone, and
// for comparison what a connection costs of which only the address counts.
func BenchmarkNow(b *testing.B) {
	f := finder(b, rulesOf(b, loopback, ""), nil)
	p := connect(b)
	p.send(b, nginxHead)
	now := func(f *Finder) func(*testing.B) {
		return func(b *testing.B) {
			buffer := f.Buffer()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := findNow(f, &p.Handoff, buffer); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run(fmt.Sprintf("peek and scan %d bytes", len(nginxHead)), now(f))
	b.Run("incomplete", func(b *testing.B) { // and whoever it is has to wait
		p := connect(b)
		p.send(b, nginxHead[:len(nginxHead)-2])
		buffer := f.Buffer()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := findNow(f, &p.Handoff, buffer); err != ErrPartial {
				b.Fatal(err)
			}
		}
	})
	b.Run("session", func(b *testing.B) {
		f, p := sessionFinder(b), connect(b)
		p.send(b, sidLine)
		buffer := f.Buffer()
		b.ReportAllocs()
		for b.Loop() {
			if client, err := findNow(f, &p.Handoff, buffer); err != nil || client.Session == 0 {
				b.Fatal(client, err)
			}
		}
	})
	b.Run("peek and scan, key", now(finder(b, rulesOf(b, loopback, "X-Session"), nil)))
	b.Run("peek and scan, keys and a session that names its worker", func(b *testing.B) {
		names := NewNames([SecretSize]byte{1})
		rules := rulesOf(b, loopback, "")
		rules.Keys, _ = forwarded.ParseKeys("cookie:id,query:id,path:/*/{id}")
		rules.Sessions, _ = forwarded.ParseSessions("engine.io,header:Mcp-Session-Id")
		f, p := finder(b, rules, func(c *Config) { c.Names = names }), connect(b)
		p.send(b, strings.Replace(nginxHead, "\r\n\r\n", "\r\nMcp-Session-Id: x."+names.Token(Name{1, 1, 1}).String()+"\r\n\r\n", 1))
		buffer := f.Buffer()
		b.ReportAllocs()
		for b.Loop() {
			if client, err := findNow(f, &p.Handoff, buffer); err != nil || client.Name.Start != 1 {
				b.Fatal(client, err)
			}
		}
	})
	b.Run("no HTTP", func(b *testing.B) {
		p := connect(b)
		p.send(b, "\x16\x03\x01")
		buffer := f.Buffer()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := findNow(f, &p.Handoff, buffer); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("address", now(finder(b, forwarded.Rules{}, nil)))
	b.Run("scan", func(b *testing.B) {
		data := []byte(nginxHead)
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			h := forwarded.Head{Request: f.cfg.Rules.Request()}
			if h.Scan(data) != forwarded.Complete {
				b.Fatal("no head")
			}
		}
	})
}

// findNow calls Now within the gate, as the straight line does.
func findNow(f *Finder, h *fdpass.Handoff, buffer []byte) (Client, error) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	return f.Now(h, false, buffer)
}
