package forwarded

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// proxy is the trusted proxy that sends the heads of these tests.
const proxy = "10.0.0.1"

func headRules(t testing.TB, header string) *Rules {
	return &Rules{Header: header, Keys: byHeader("X-Session"), Trusted: trust(t, "10.0.0.0/8")}
}

// found is all that a scan says.
type found struct {
	progress Progress
	client   netip.Addr
	key      string
}

func scan(rules *Rules, data string) found {
	h := Head{Request: rules.Request()}
	progress := h.Scan([]byte(data))
	if progress != Complete {
		return found{progress: progress}
	}
	return found{progress, h.chain.client(), strings.Clone(h.keys[0])}
}

func (p Progress) String() string {
	return [...]string{"nothing", "partial", "complete", "no HTTP"}[p]
}

func (f found) String() string {
	if f.progress != Complete {
		return f.progress.String()
	}
	return fmt.Sprintf("complete, client %v, key %q", f.client, f.key)
}

func (f found) final() bool { return f.progress == Complete || f.progress == NotHTTP }

const request = "GET / HTTP/1.1\r\n"

type goodHead struct{ name, head, client, key string }

// ordinaryHeads are what these programs send.
var ordinaryHeads = []goodHead{
	{"curl 8", "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n", "", ""},
	{"HTTP/1.0 without headers", "GET / HTTP/1.0\r\n\r\n", "", ""},
	{"nginx, proxy_pass", "GET /chat?room=1 HTTP/1.0\r\nX-Real-IP: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nHost: backend\r\nConnection: close\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n", "192.0.2.1", ""},
	{"nginx, WebSocket", "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nHost: example.org\r\nX-Forwarded-For: 2001:db8::1, 10.0.0.2\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", "2001:db8::1", ""},
	{"HAProxy, option forwardfor", "GET / HTTP/1.1\r\nhost: example.org\r\nuser-agent: curl/8.5.0\r\naccept: */*\r\nx-forwarded-for: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"HAProxy behind another proxy: a line of its own", "GET / HTTP/1.1\r\nhost: example.org\r\nx-forwarded-for: 203.0.113.66\r\naccept: */*\r\nx-forwarded-for: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"Apache, mod_proxy_http", "GET / HTTP/1.1\r\nHost: backend:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: example.org\r\nX-Forwarded-Server: www.example.org\r\nConnection: Keep-Alive\r\n\r\n", "192.0.2.1", ""},
	{"Apache, mod_proxy_wstunnel", "GET /ws HTTP/1.1\r\nHost: backend\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nX-Forwarded-For: 203.0.113.66, 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"Application Gateway of Azure, with port", "GET / HTTP/1.1\r\nHost: example.org\r\nX-FORWARDED-FOR: 192.0.2.1:54321\r\nX-FORWARDED-PROTO: http\r\n\r\n", "192.0.2.1", ""},
	{"Envoy", "GET / HTTP/1.1\r\nhost: example.org\r\nx-forwarded-for: 192.0.2.1\r\nx-envoy-expected-rq-timeout-ms: 15000\r\nx-request-id: 0f1e\r\n\r\n", "192.0.2.1", ""},
	{"Firefox", "GET /favicon.ico HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: image/avif,image/webp,*/*;q=0.8\r\nAccept-Language: de,en-US;q=0.7,en;q=0.3\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nCookie: a=\"b: c\"; d=é\r\nSec-GPC: 1\r\nPriority: u=6\r\n\r\n", "", ""},
	{"Chrome, form", "POST /form?a=%20b&c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 44\r\nsec-ch-ua: \"Chromium\";v=\"126\", \"Not/A)Brand\";v=\"8\"\r\nContent-Type: application/x-www-form-urlencoded\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "", ""},
	{"CONNECT", "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", "", ""},
	{"absolute form, RFC 9112 section 3.2.2", "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n", "", ""},
	{"WebDAV, the longest registered method", "UPDATEREDIRECTREF /a HTTP/1.1\r\nHost: x\r\n\r\n", "", ""},
	{"a method that no one has heard of", strings.Repeat("M", 5000) + " / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"any token is a method", "!#$%&'*+-.^_`|~09az / HTTP/1.1\r\n\r\n", "", ""},
	{"other minor versions, RFC 9110 section 2.5", "GET / HTTP/1.9\r\n\r\n", "", ""},
	{"target beyond ASCII", "GET /é\xff HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"bare LF lines, RFC 9112 section 2.2", "GET / HTTP/1.1\nX-Forwarded-For: 192.0.2.1\nX-Session: a\n\n", "192.0.2.1", "a"},
	{"mixed lines", "GET / HTTP/1.1\nX-Forwarded-For: 192.0.2.1\r\nX-Session: a\n\r\n", "192.0.2.1", "a"},
	{"an empty line before, RFC 9112 section 2.2", "\r\nGET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
	{"many empty lines before", "\n\r\n\n\r\r\n\nGET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", "192.0.2.1", ""},
}

// headerLines are heads of which only these lines matter.
var headerLines = []goodHead{
	{"no space after the colon", "X-Forwarded-For:192.0.2.1\r\nX-Session:a\r\n", "192.0.2.1", "a"},
	{"several, and tabs", "X-Forwarded-For: \t  192.0.2.1 \t\r\nX-Session:\t \ta b\t \r\n", "192.0.2.1", "a b"},
	{"small letters", "x-forwarded-for: 192.0.2.1\r\nx-session: Ab\r\n", "192.0.2.1", "Ab"},
	{"capitals", "X-FORWARDED-FOR: 192.0.2.1\r\nX-SESSION: Ab\r\n", "192.0.2.1", "Ab"},
	{"several lines are one list, RFC 9110 section 5.3", "X-Forwarded-For: 203.0.113.66\r\nx-forwarded-for: 192.0.2.1\r\nA: b\r\nX-Forwarded-For: 10.0.0.2\r\n", "192.0.2.1", ""},
	{"only proxies in several lines", "X-Forwarded-For: 10.0.0.3\r\nX-Forwarded-For: 10.0.0.2\r\n", "10.0.0.3", ""},
	{"other headers", "X-Forwarded-Format: 203.0.113.66\r\nX-Forwarded-Fo: 203.0.113.66\r\nX-Forwarded-For2: 203.0.113.66\r\nX_Forwarded_For: 203.0.113.66\r\nForwarded: for=203.0.113.66\r\nX-Sessio: b\r\nX-Sessions: b\r\n", "", ""},
	{"a header in a value", "A: X-Forwarded-For: 203.0.113.66\r\nB: \\r\\nX-Session: b\r\n", "", ""},
	{"a colon in a value", "X-Forwarded-For: [2001:db8::1]:80\r\nX-Session: a:b: c\r\n", "2001:db8::1", "a:b: c"},
	{"the last key counts", "X-Session: b\r\nX-Session: c\r\nA: b\r\nx-session: a\r\n", "", "a"},
	{"also when it is empty", "X-Session: b\r\nX-Session:\r\n", "", ""},
	{"a list is one key", "X-Session: b, a\r\n", "", "b, a"},
	{"empty values", "X-Forwarded-For:\r\nX-Forwarded-For: \r\nX-Session: \t\r\nA:\r\n", "", ""},
	{"nobody is named", "X-Forwarded-For: unknown, -, unix:\r\n", "", ""},
	{"bytes beyond ASCII, control characters", "X-Forwarded-For: 192.0.2.1\r\nA: \x80\xff\x01\x0b\x1b\x7f\r\nX-Session: \xff\x01\r\n", "192.0.2.1", "\xff\x01"},
	{"any token is a name", "!#$%&'*+-.^_`|~09az: b\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1", ""},
	{"long line", "A: " + strings.Repeat("b", 1<<15) + "\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1", ""},
}

func goodHeads() []goodHead {
	heads := slices.Clone(ordinaryHeads)
	for _, v := range headerLines {
		v.head = request + v.head + "\r\n"
		heads = append(heads, v)
	}
	return heads
}

// TestHead: of every beginning of a head more is awaited, and what is behind it does not
// matter.
func TestHead(t *testing.T) {
	rules := headRules(t, DefaultHeader)
	for _, v := range goodHeads() {
		want := found{Complete, addr(v.client), v.key}
		for _, behind := range []string{"", "X-Forwarded-For: 203.0.113.66\r\nX-Session: z\r\n\r\n", "\r\n", "\x00", " folded\r\n"} {
			if got := scan(rules, v.head+behind); got != want {
				t.Errorf("%s, with %q behind: %v, want %v", v.name, behind, got, want)
			}
		}
		blank := len(v.head) - len(strings.TrimLeft(v.head, "\r\n"))
		step := 1 + len(v.head)/2000
		for n := 0; n < len(v.head); n += step {
			want := Partial
			if n <= blank {
				want = Nothing
			}
			if got := scan(rules, v.head[:n]); got.progress != want {
				t.Errorf("%s, %q: %v, want %v", v.name, v.head[:n], got, want)
			}
		}
	}
}

// TestHeadRules: without a key there is none, and another header is another one.
func TestHeadRules(t *testing.T) {
	const head = request + "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.2;proto=http\r\nForwarded: for=10.0.0.2\r\nX-Real-IP: 192.0.2.3\r\n: x\r\nX-Session: a\r\n\r\n"
	good := strings.Replace(head, ": x\r\n", "", 1)
	for _, v := range []struct{ header, key, client, want string }{
		{"X-Forwarded-For", "", "192.0.2.1", ""},
		{"Forwarded", "", "192.0.2.2", ""},
		{"x-real-ip", "x-real-ip", "192.0.2.3", "192.0.2.3"},
		{"X-Other", "X-Session", "", "a"},
	} {
		rules := &Rules{Header: v.header, Keys: byHeader(v.key), Trusted: trust(t, "10.0.0.0/8")}
		if got, want := scan(rules, good), (found{Complete, addr(v.client), v.want}); got != want {
			t.Errorf("header %q, key %q: %v, want %v", v.header, v.key, got, want)
		}
		if got := scan(rules, head); got.progress != NotHTTP {
			t.Errorf("header %q, key %q: a line without a name is %v", v.header, v.key, got)
		}
	}
}

// otherProtocols are cut where it is certain that they are not HTTP/1: up to there one
// has to wait for more, and from there on nobody has to.
var otherProtocols = []struct{ name, certain, rest string }{
	{"TLS 1.3 ClientHello", "\x16", "\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
	{"HTTP/2 with prior knowledge, RFC 9113 section 3.4", "PRI * HTTP/2", ".0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04"},
	{"SSH", "SSH-2.0-OpenSSH_9.6\r", "\n"},
	{"SSH, Ubuntu", "SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13.5\r", "\n"},
	{"Redis RESP", "*1\r", "\n$4\r\nPING\r\n"},
	{"Redis inline", "PING\r", "\n"},
	{"SMTP", "EHLO example.org\r", "\n"},
	{"SMTP with bare LF", "HELO example.org\n", ""},
	{"memcached, get", "get key\r", "\n"},
	{"memcached, set", "set key 0", " 60 5\r\nvalue\r\n"},
	{"memcached, binary", "\x80", "\x00\x00\x03"},
	{"PostgreSQL", "\x00", "\x00\x00\x08\x04\xd2\x16\x2f"},
	{"MQTT", "\x10", "\x0c\x00\x04MQTT"},
	{"SIP", "REGISTER sip:example.org S", "IP/2.0\r\n"},
	{"RTSP", "OPTIONS rtsp://example.org/ R", "TSP/1.0\r\n"},
	{"PROXY protocol 1", "PROXY TCP4 1", "92.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n\r\n"},
	{"PROXY protocol 1, unknown", "PROXY UNKNOWN\r", "\nGET / HTTP/1.1\r\n\r\n"},
	{"PROXY protocol 2", "\r\n\r\n\x00", "\r\nQUIT\n\x21\x11\x00\x0c"},
	{"JSON", "{", "}\n"},
	{"UTF-8 byte order mark", "\xef", "\xbb\xbfGET / HTTP/1.1\r\n\r\n"},

	{"HTTP/0.9", "GET /\r", "\n"},
	{"HTTP/0.9, bare LF", "GET /\n", ""},
	{"HTTP/2.0", "GET / HTTP/2", ".0\r\n\r\n"},
	{"HTTP/1", "GET / HTTP/1\r", "\n\r\n"},
	{"HTTP/1.", "GET / HTTP/1.\r", "\n\r\n"},
	{"HTTP/1., bare LF", "GET / HTTP/1.\n", "\n"},
	{"HTTP/1.10", "GET / HTTP/1.10", "\r\n\r\n"},
	{"HTTP/1.x", "GET / HTTP/1.x", "\r\n\r\n"},
	{"http/1.1: case matters, RFC 9112 section 2.3", "GET / h", "ttp/1.1\r\n\r\n"},
	{"space behind the version", "GET / HTTP/1.1 ", "\r\n\r\n"},
	{"CR twice", "GET / HTTP/1.1\r\r", "\n\r\n"},
	{"CR without LF", "GET / HTTP/1.1\rA", ": b\r\n\r\n"},
	{"no version", "GET / \r", "\n"},
	{"no version, bare LF", "GET / \n", ""},
	{"no target", "GET\r", "\n"},
	{"no target, bare LF", "GET\n", ""},
	{"no target, space", "GET \n", ""},
	{"two spaces", "GET  ", "/ HTTP/1.1\r\n\r\n"},
	{"three words", "GET /a b", " HTTP/1.1\r\n\r\n"},
	{"leading space", " ", "GET / HTTP/1.1\r\n\r\n"},
	{"tab instead of space", "GET\t", "/ HTTP/1.1\r\n\r\n"},
	{"tab in the target", "GET /\t", "HTTP/1.1\r\n\r\n"},
	{"NUL in the target", "GET /\x00", " HTTP/1.1\r\n\r\n"},
	{"DEL in the target", "GET /\x7f", " HTTP/1.1\r\n\r\n"},
	{"response", "HTTP/", "1.1 200 OK\r\n\r\n"},

	// Lines are judged when they are whole.
	{"folded, RFC 9112 section 5.2", request + "X-Forwarded-For: 192.0.2.1\r\n ,203.0.113.66\r\n", "\r\n"},
	{"folded with a tab", request + "X-Forwarded-For: 192.0.2.1,\r\n\t203.0.113.66\r\n", "\r\n"},
	{"folded with a colon", request + "A: b\r\n X-Forwarded-For: 203.0.113.66\r\n", "\r\n"},
	{"folded by a blank", request + "A: b\r\n \r\n", "\r\n"},
	{"space before the first header", request + " A: b\r\n", "\r\n"},
	{"space before the colon, RFC 9112 section 5.1", request + "X-Forwarded-For : 203.0.113.66\r\n", "\r\n"},
	{"tab before the colon", request + "X-Forwarded-For\t: 203.0.113.66\r\n", "\r\n"},
	{"space in a name", request + "X-Forwarded For: 203.0.113.66\r\n", "\r\n"},
	{"no name", request + ": b\r\n", "\r\n"},
	{"no colon", request + "A\r\n", "\r\n"},
	{"no colon, bare LF", request + "A: b\nA\n", "\n"},
	{"name beyond ASCII", request + "X-Forwarded-Für: b\r\n", "\r\n"},
	{"the long s, which is an s when case does not matter", request + "X-\u017fession: b\r\n", "\r\n"},
	{"NUL in a name", request + "A\x00: b\r\n", "\r\n"},
	{"NUL in a value", request + "A: b\x00\r\n", "\r\n"},
	{"NUL behind the address", request + "X-Forwarded-For: 192.0.2.1\x00\r\n", "\r\n"},
	{"bare CR in a value", request + "A: b\rX-Forwarded-For: 203.0.113.66\r\n", "\r\n"},
	{"bare CR in a name", request + "A\r: b\r\n", "\r\n"},
	{"CR twice behind a value", request + "A: b\r\r\n", "\r\n"},
	{"CR twice on the blank line", request + "A: b\r\n\r\r\n", "\r\n"},
	{"bare CR lines", request + "A: b\rX-Forwarded-For: 203.0.113.66\r\r\n", "\r\n"},
}

// TestNotHTTP: to the byte, whatever else comes, and also when it looks like a head again.
func TestNotHTTP(t *testing.T) {
	rules := headRules(t, DefaultHeader)
	for _, v := range otherProtocols {
		for n := range len(v.certain) {
			if got := scan(rules, v.certain[:n]); got.final() {
				t.Errorf("%s: %q is %v before it is certain", v.name, v.certain[:n], got)
			}
		}
		for _, rest := range []string{v.rest, "", "\x00", "\r\n\r\n", request + "X-Forwarded-For: 203.0.113.66\r\n\r\n"} {
			for n := range len(rest) + 1 {
				if got := scan(rules, v.certain+rest[:n]); got.progress != NotHTTP {
					t.Errorf("%s: %q is %v", v.name, v.certain+rest[:n], got)
				}
			}
		}
	}
}

// TestHeadLinear: a head that is 16 times as long takes about 16 times as long, whatever a
// client fills it with. The bound is between that and the 256 times of a quadratic,
// which takes milliseconds for the short head. The garbage collector disturbs: the best counts.
func TestHeadLinear(t *testing.T) {
	const short, long, bound, floor = 4 << 10, 64 << 10, 40, 20 * time.Microsecond
	best := func(rules *Rules, head []byte, enough time.Duration) time.Duration {
		best := time.Hour
		for try := 0; try < 20 && best > enough; try++ {
			h := newHead(rules)
			best = min(best, cpuTime(t, func() { h.Scan(head) }))
		}
		return best
	}
	for _, header := range []string{DefaultHeader, "Forwarded"} {
		rules := headRules(t, header)
		for _, v := range []struct{ before, filling, behind string }{
			{"", "\r", ""}, {"", "\n", ""}, {"", "\r\n", "\r"}, {"", "A", ""},
			{"GET ", "/", ""}, {"GET ", "/", " HTTP/1.1\r\n\r\n"}, {"GET / ", " ", ""},
			{request, "A", ""}, {request, ":", "\r\n\r\n"}, {request, "A:\n", ""}, {request, "A:\r\n", "\r\n"}, {request, "A: b\r\n", "\r"},
			{request + "A:", "\r", ""}, {request + "A:", " ", "\r\n\r\n"}, {request + "X-Session:", " ", "\n\n"}, {request, "X-Session: a\n", "\n"},
			{request, header + ":\n", "\n"}, {request, header + ": 10.0.0.1\n", "\n"}, {request, header + ": for=10.0.0.1\n", "\n"},
			{request + header + ":", ",", "\n\n"}, {request + header + ":", "10.0.0.1,", "\n\n"}, {request + header + ":", `for="\",`, "\n\n"},
			{request + header + ":", `="`, "\n\n"}, {request + header + ":", `"`, "\n\n"}, {request + header + ":", `\`, "\n\n"},
		} {
			head := func(size int) []byte {
				return []byte(v.before + strings.Repeat(v.filling, size/len(v.filling)) + v.behind)
			}
			limit := bound * max(best(rules, head(short), floor), floor)
			if cost := best(rules, head(long), limit); cost > limit {
				t.Errorf("%q, many %q: %v for %d bytes, want at most %v", v.before, v.filling, cost, long, limit)
			}
		}
	}
}

func newHead(rules *Rules) Head { return Head{Request: rules.Request()} }

// FuzzHead: a scan says the same however the bytes are cut and whatever is behind the
// blank line, and it understands heads as net/http does, or says that they are none.
func FuzzHead(f *testing.F) {
	for _, v := range goodHeads() {
		if len(v.head) < 2000 {
			f.Add([]byte(v.head), []byte("X-Session: z\r\n\r\n"), false)
			f.Add([]byte(strings.ReplaceAll(v.head, DefaultHeader+": ", "Forwarded: for=")), []byte("body"), true)
		}
	}
	for _, v := range otherProtocols {
		f.Add([]byte(v.certain+v.rest), []byte("\r\n\r\n"), false)
	}
	for _, v := range append(stricterThanHTTP, looserThanHTTP...) {
		f.Add([]byte(v), []byte{}, false)
	}
	xff, rfc7239 := headRules(f, DefaultHeader), headRules(f, "Forwarded")
	f.Fuzz(func(t *testing.T, data, behind []byte, standard bool) {
		rules := xff
		if standard {
			rules = rfc7239
		}
		checkCuts(t, rules, data)
		checkBlankLine(t, rules, data, behind)
		checkHTTP(t, rules, data)
	})
}

// checkCuts: every beginning is open, or says what the whole says.
func checkCuts(t *testing.T, rules *Rules, data []byte) {
	want := scan(rules, string(data))
	step := 1 + len(data)/512
	for n := 0; n <= len(data); n += step {
		if got := scan(rules, string(data[:n])); got.final() && got != want {
			t.Errorf("%q is %v, but %q is %v", data[:n], got, data, want)
		}
	}
}

// checkBlankLine: the answer is there with the blank line, and nothing behind it matters.
func checkBlankLine(t *testing.T, rules *Rules, data, behind []byte) {
	end := blankLine(data)
	want := scan(rules, string(data))
	if end < 0 {
		if want.progress == Complete {
			t.Errorf("%q is %v without a blank line", data, want)
		}
		return
	}
	if !want.final() {
		t.Errorf("%q is %v behind its blank line", data, want)
	}
	head := data[:end:end]
	for _, rest := range [][]byte{nil, behind, bytes.Repeat([]byte{0}, len(data)-end)} {
		if got := scan(rules, string(head)+string(rest)); got != want {
			t.Errorf("%q is %v, but %q with %q behind is %v", data, want, head, rest, got)
		}
	}
	if got := newHead(rules); got.Scan(head) != want.progress {
		t.Errorf("%q with nothing behind it in memory is not %v", head, want)
	}
	if want.progress == Complete {
		if got := scan(rules, string(head[:end-1])); got.final() {
			t.Errorf("%q is %v without the last byte of its blank line", head, got)
		}
	}
}

// blankLine returns where the first blank line ends that has a line before it, or -1.
func blankLine(data []byte) int {
	lines := false
	for n, c := range data {
		blank := n > 0 && data[n-1] == '\n' || n > 1 && data[n-1] == '\r' && data[n-2] == '\n'
		switch {
		case c != '\r' && c != '\n':
			lines = true
		case c == '\n' && lines && blank:
			return n + 1
		}
	}
	return -1
}

// stricterThanHTTP are heads that net/http accepts and we do not: heads that proxies
// do not send, which other servers may understand in another way, and which cost a client
// its place only.
var stricterThanHTTP = []string{
	"PRI * HTTP/2.0\r\n\r\n",                                                  // no HTTP/1; there net/http knows the preface of HTTP/2
	"GET / HTTP/0.9\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",                    // no HTTP/1
	"CONNECT  HTTP/1.1\r\n\r\n",                                               // no target
	request + "A: b\r\n c\r\n\r\n",                                            // folded
	request + "X-Forwarded-For: 192.0.2.1,\r\n\t203.0.113.66\r\n\r\n",         // folded
	request + "X-Forwarded-For : 192.0.2.1\r\n\r\n",                           // space before the colon, https://go.dev/issue/34540
	request + "X Forwarded For: 192.0.2.1\r\n\r\n",                            // space in a name
	request + "A: b\r\n \t\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",             // folded, empty
	request + "X-Forwarded-For: 203.0.113.66\r\n\t192.0.2.1\r\nA : b\n\r\n",   // all of it
	"CONNECT  HTTP/3.0\nX-Forwarded-For: 192.0.2.1\nA b: c\nX-Session: a\n\n", // all of it
}

// isStricter tells with other means whether a head that net/http accepts is one of these.
func isStricter(data []byte, r *http.Request) bool {
	for name := range r.Header {
		if strings.Contains(name, " ") {
			return true
		}
	}
	folded := bytes.Contains(data[:blankLine(data)], []byte("\n ")) || bytes.Contains(data[:blankLine(data)], []byte("\n\t"))
	return folded || r.ProtoMajor != 1 || r.RequestURI == ""
}

// looserThanHTTP are heads that net/http does not accept and we do: nothing is wrong with
// their lines, and the worker whose client this is shall answer.
var looserThanHTTP = []string{
	"\r\nGET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", // an empty line before
	"GET %zz HTTP/1.1\r\n\r\n",
	"GET http://[/ HTTP/1.1\r\n\r\n",
	request + "Host: a\r\nHost: b\r\n\r\n",
	request + "Content-Length: x\r\n\r\n",
	request + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
	request + "Transfer-Encoding: x\r\n\r\n",
	request + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n",
	request + "A: \x01\x7f\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n", // control characters; no line ends there
}

// isLooser tells whether err, which net/http has for a head, is about one of these.
func isLooser(data []byte, err error) bool {
	var malformed textproto.ProtocolError
	if errors.As(err, &malformed) {
		return bytes.ContainsFunc(data[:blankLine(data)], func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\r\n", r) || r == 0x7f })
	}
	return !strings.HasPrefix(err.Error(), "malformed HTTP") && !strings.HasPrefix(err.Error(), "invalid method") && !errors.Is(err, io.ErrUnexpectedEOF)
}

// checkHTTP compares with net/http.
func checkHTTP(t *testing.T, rules *Rules, data []byte) {
	got := scan(rules, string(data))
	data = bytes.TrimLeft(data, "\r\n")
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
	switch {
	case err != nil && got.progress == Complete && !isLooser(data, err):
		t.Errorf("%q is %v, but for net/http %v", data, got, err)
	case err != nil:
		return
	case isStricter(data, r):
		if got.progress != NotHTTP {
			t.Errorf("%q is %v, want no HTTP", data, got)
		}
	default:
		want := found{progress: Complete, client: clientOf(rules.Header, rules.Trusted, r.Header.Values(rules.Header)...)}
		if keys := r.Header.Values(rules.Keys[0].Name); len(keys) > 0 {
			want.key = keys[len(keys)-1]
		}
		if got != want {
			t.Errorf("%q is %v, for net/http %v", data, got, want)
		}
	}
}

// TestDifferences: the differences to net/http are what they are said to be.
func TestDifferences(t *testing.T) {
	rules := headRules(t, DefaultHeader)
	for _, v := range stricterThanHTTP {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(v)))
		if err != nil || !isStricter([]byte(v), r) {
			t.Errorf("%q: net/http says %v", v, err)
		}
		if got := scan(rules, v); got.progress != NotHTTP {
			t.Errorf("%q is %v", v, got)
		}
	}
	for _, v := range looserThanHTTP {
		if _, err := http.ReadRequest(bufio.NewReader(strings.NewReader(v))); err == nil {
			t.Errorf("%q: net/http accepts it", v)
		}
		if got := scan(rules, v); got.progress != Complete {
			t.Errorf("%q is %v", v, got)
		}
	}
}
