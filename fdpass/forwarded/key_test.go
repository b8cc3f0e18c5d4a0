package forwarded

import (
	"encoding/base32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/hash"
)

// byHeader is by address for the empty name.
func byHeader(name string) Keys {
	if name == "" {
		return nil
	}
	return Keys{{ByHeader, name}}
}

func TestParseKeys(t *testing.T) {
	for text, want := range map[string]Keys{
		"address":                         nil,
		"header:X-Session":                {{ByHeader, "X-Session"}},
		"header:X-Session,address":        {{ByHeader, "X-Session"}},
		"header:address":                  {{ByHeader, "address"}},
		"header:header":                   {{ByHeader, "header"}},
		"cookie:a":                        {{ByCookie, "a"}},
		"query:a b:c":                     {{ByQuery, "a b:c"}},
		"path:/{a}":                       {{ByPath, "/{a}"}},
		"path:/echo/*/{session},cookie:a": {{ByPath, "/echo/*/{session}"}, {ByCookie, "a"}},
		"cookie:a,cookie:b,cookie:c,query:d,address": {{ByCookie, "a"}, {ByCookie, "b"}, {ByCookie, "c"}, {ByQuery, "d"}},
	} {
		keys, err := ParseKeys(text)
		if err != nil || !slices.Equal(keys, want) || keys.String() != strings.TrimSuffix(text, ",address") {
			t.Errorf("%q is %+v, error %v, again %q", text, keys, err, keys)
		}
	}
	for _, text := range []string{"", "Address", "address:", "address:X", "header", "header:", "header: X", "header:X:Y", "header:X Y", "cookie:", "cookie:a;b", "query", "query:",
		"query:a\n", "X-Session", " address", "path:", "path:/", "path:{a}", "path:/a", "path:/{}", "path:/{a}/b", "path:/{a}/{b}", "path://{a}", "path:/a*/{b}", "path:/?{a}", "path:/{a", "path:/%61/{a}",
		"engine.io", "cookie:a,", "cookie:a, cookie:b"} {
		keys, err := ParseKeys(text)
		if err == nil || keys != nil {
			t.Errorf("%q is accepted as %q", text, keys)
		} else if !strings.Contains(err.Error(), "want address or header:NAME or cookie:NAME or query:NAME or path:TEMPLATE") {
			t.Errorf("the error for %q has no remedy: %v", text, err)
		}
	}
	for text, want := range map[string]string{"address,cookie:a": "never count", "cookie:a,cookie:b,cookie:c,cookie:d,cookie:e": "at most 4"} {
		if keys, err := ParseKeys(text); err == nil || keys != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is accepted as %q, error %v", text, keys, err)
		}
	}
}

func TestParseSessions(t *testing.T) {
	for text, want := range map[string]Sessions{
		"":                                nil,
		"engine.io":                       {{Kind: ByEngineIO}},
		"header:Mcp-Session-Id,cookie:id": {{ByHeader, "Mcp-Session-Id"}, {ByCookie, "id"}},
	} {
		sessions, err := ParseSessions(text)
		if err != nil || !slices.Equal(sessions, want) || sessions.String() != text {
			t.Errorf("%q is %+v, error %v, again %q", text, sessions, err, sessions)
		}
	}
	for text, want := range map[string]string{
		"address": "want header:NAME or cookie:NAME or query:NAME or path:TEMPLATE or engine.io",
		",":       "want header:NAME",
		"engine.io,engine.io,engine.io,engine.io,engine.io": "at most 4",
	} {
		if sessions, err := ParseSessions(text); err == nil || sessions != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is accepted as %q, error %v", text, sessions, err)
		}
	}
}

// TestKeyHash: a client that is named on its own has the key that its requests have.
func TestKeyHash(t *testing.T) {
	config := hash.DefaultConfig()
	for _, v := range []struct {
		keys   Keys
		client string
		want   hash.Key
		fails  bool
	}{
		{nil, "192.0.2.1", config.Key(addr("192.0.2.1")), false},
		{nil, "me", 0, true},
		{byHeader("X-User"), "me", config.Text("me"), false},
		{byHeader("X-User"), "192.0.2.1", config.Text("192.0.2.1"), false},
	} {
		if got, err := v.keys.Hash(v.client, config); got != v.want || (err != nil) != v.fails {
			t.Errorf("%v, %q: %v, %v, want %v", v.keys, v.client, got, err, v.want)
		}
	}
}

// TestRequest: of each kind of key, where it is and where it is not; and whose word counts.
func TestRequest(t *testing.T) {
	config := hash.DefaultConfig()
	me, forwarded := addr("192.0.2.1"), "X-Forwarded-For: 192.0.2.1\n"
	byAddress := Client{Addr: me, Key: config.Key(me)}
	by := func(text string) Client { return Client{me, config.Text(text), true} }
	for _, v := range []struct {
		what, keys, from, target, lines string
		want                            Client
	}{
		{"address", "address", proxy, "/", forwarded + "X-User: me", byAddress},
		{"header", "header:X-User", proxy, "/", forwarded + "X-User: me", by("me")},
		{"header, space around it", "header:X-User", proxy, "/", forwarded + "x-user: \tme ", by("me")},
		{"header, the last one", "header:X-User", proxy, "/", "X-User: you\n" + forwarded + "X-User: me", by("me")},
		{"header, the last one is empty", "header:X-User", proxy, "/", forwarded + "X-User: you\nX-User:", byAddress},
		{"no header", "header:X-User", proxy, "/", forwarded, byAddress},
		{"header from a stranger", "header:X-User", "192.0.2.1", "/", "X-Forwarded-For: 192.0.2.2\nX-User: me", byAddress},

		{"cookie", "cookie:id", proxy, "/", forwarded + "Cookie: id=me", by("me")},
		{"cookie from anybody", "cookie:id", "192.0.2.1", "/", "X-Forwarded-For: 192.0.2.2\nCookie: id=me", by("me")},
		{"cookie among others", "cookie:id", "192.0.2.1", "/", "Cookie: a=b; xid=you; id=me; id2=you", by("me")},
		{"cookie, the first one", "cookie:id", "192.0.2.1", "/", "Cookie: id=me;id=you\ncookie: id=you", by("me")},
		{"cookie in a later line", "cookie:id", "192.0.2.1", "/", "Cookie: a=b\nCookie: id=me", by("me")},
		{"cookie in quotes", "cookie:id", "192.0.2.1", "/", `Cookie: id="me" ;a="b`, by("me")},
		{"cookie that is no quoted one", "cookie:id", "192.0.2.1", "/", `Cookie: id="`, by(`"`)},
		{"cookie, case matters", "cookie:id", "192.0.2.1", "/", "Cookie: ID=me", byAddress},
		{"cookie without a value", "cookie:id", "192.0.2.1", "/", "Cookie: id; id=", byAddress},
		{"cookie with = in it", "cookie:id", "192.0.2.1", "/", "Cookie: id=a=b", by("a=b")},
		{"cookie as it comes", "cookie:id", "192.0.2.1", "/", "Cookie: id=s%3Ame", by("s%3Ame")},

		{"query", "query:id", "192.0.2.1", "/a?id=me", "", by("me")},
		{"query among others", "query:id", "192.0.2.1", "/?a=id&xid=you&id=me&id=you", "", by("me")},
		{"query, encoded", "query:i d", "192.0.2.1", "/?i%20d=m%65+1", "", by("me 1")},
		{"query, wrongly encoded", "query:id", "192.0.2.1", "/?id=m%6", "", by("m%6")},
		{"query in an absolute URI", "query:id", "192.0.2.1", "http://id=you/?id=me", "", by("me")},
		{"query behind a fragment", "query:id", "192.0.2.1", "/#?id=you", "", byAddress},
		{"query without path", "query:id", "192.0.2.1", "http://a?id=me", "", by("me")},
		{"no query", "query:id", "192.0.2.1", "/id=you", "", byAddress},
		{"no target", "query:id", "192.0.2.1", "*", "", byAddress},

		{"path", "path:/echo/*/{session}", "192.0.2.1", "/echo/123/me/xhr_send?a=/b", "", by("me")},
		{"path that ends there", "path:/echo/*/{session}", "192.0.2.1", "/echo/123/me", "", by("me")},
		{"path, encoded", "path:/echo/*/{session}", "192.0.2.1", "/%65cho/%2f/m%65+", "", by("me+")},
		{"path in an absolute URI", "path:/{id}", "192.0.2.1", "http://you/me", "", by("me")},
		{"other path", "path:/echo/*/{session}", "192.0.2.1", "/Echo/123/you", "", byAddress},
		{"path with an empty segment", "path:/echo/*/{session}", "192.0.2.1", "/echo//you", "", byAddress},
		{"short path", "path:/echo/*/{session}", "192.0.2.1", "/echo/you", "", byAddress},
		{"empty path", "path:/{id}", "192.0.2.1", "/", "", byAddress},

		{"the first key that is there", "cookie:id,query:id,path:/{id}", "192.0.2.1", "/you?id=me", "Cookie: a=b", by("me")},
		{"the order of keys, not of the head", "cookie:id,query:id", "192.0.2.1", "/?id=you", "Cookie: id=me", by("me")},
		{"what a stranger has not to say", "header:X-User,cookie:id", "192.0.2.1", "/", "X-User: you\nCookie: id=me", by("me")},
	} {
		keys, err := ParseKeys(v.keys)
		if err != nil {
			t.Fatal(err)
		}
		rules := Rules{Header: DefaultHeader, Keys: keys, Trusted: trust(t, proxies)}
		request := rules.Request()
		request.Target(v.target)
		for line := range strings.Lines(v.lines) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			request.Header(name, value)
		}
		if got := request.Client(addr(v.from), config); got != v.want {
			t.Errorf("%s: %v, want %v", v.what, got, v.want)
		}
	}
}

// TestTokens: where ids are, and what a token is.
func TestTokens(t *testing.T) {
	one, two := strings.Repeat("a", TokenSize), strings.Repeat("2z", TokenSize/2)
	for _, v := range []struct {
		sessions, target, lines string
		want                    string // tokens with spaces between them
	}{
		{"engine.io", "/socket.io/?EIO=4&sid=x." + one, "", one},
		{"query:sid", "/?sid=" + one, "", one},
		{"query:sid", "/?sid=" + one[1:], "", ""},
		{"query:sid", "/?sid=.a" + one, "", ""},
		{"query:sid", "/?sid=x." + strings.ToUpper(one), "", ""},
		{"query:sid", "/?sid=x." + one + ".y", "", ""},
		{"query:sid", "/?sid=x." + strings.Replace(one, "a", "1", 1), "", ""},
		{"header:Mcp-Session-Id", "/mcp", "mcp-session-id: x.y." + one, one},
		{"cookie:JSESSIONID", "/", "Cookie: JSESSIONID=0123." + two, two},
		{"path:/*/{id}", "/echo/x." + one + "/xhr", "", one},
		{"cookie:id,query:id", "/?id=" + one, "Cookie: id=x." + two, two + " " + one},
		{"cookie:id,query:id", "/?id=" + one, "Cookie: id=x", one},
	} {
		sessions, err := ParseSessions(v.sessions)
		if err != nil {
			t.Fatal(err)
		}
		rules := Rules{Sessions: sessions}
		request := rules.Request()
		request.Target(v.target)
		if name, value, found := strings.Cut(v.lines, ":"); found {
			request.Header(name, value)
		}
		var got []string
		for token := range request.Tokens {
			got = append(got, token.String())
			if ParseToken(token.String()) != token {
				t.Errorf("%v is another token when it is read again", token)
			}
		}
		if strings.Join(got, " ") != v.want {
			t.Errorf("%s, %s, %s: %q, want %q", v.sessions, v.target, v.lines, got, v.want)
		}
	}
	for _, text := range []string{"", "x." + one, one + "."} {
		if got := ParseToken(text); got != (Token{}) || got.String() != "" {
			t.Errorf("%q is the token %q", text, got)
		}
	}
}

// TestTokenBytes: a token has what it was made of, as package base32 writes it.
func TestTokenBytes(t *testing.T) {
	encoding := base32.NewEncoding(digits).WithPadding(base32.NoPadding)
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var bytes [16]byte
		for i := range bytes {
			bytes[i] = byte(random.Uint32())
		}
		if token := MakeToken(bytes); token.Bytes() != bytes || token.String() != encoding.EncodeToString(bytes[:]) {
			t.Fatalf("%x is %s, and that is %x", bytes, token, token.Bytes())
		}
	}
}

// TestLook: no more of a head is looked at than matters.
func TestLook(t *testing.T) {
	for _, v := range []struct {
		header, keys, sessions string
		proxy, others          Look
	}{
		{"", "address", "", Nowhere, Nowhere},
		{DefaultHeader, "address", "", AtHeaders, Nowhere},
		{DefaultHeader, "header:X-User", "", AtHeaders, Nowhere},
		{DefaultHeader, "query:id", "", AtHeaders, AtTarget},
		{"", "path:/{id}", "", AtTarget, AtTarget},
		{"", "cookie:id", "", AtHeaders, AtHeaders},
		{"", "address", "engine.io", AtTarget, AtTarget},
		{"", "path:/{id}", "header:X", AtHeaders, AtHeaders},
	} {
		rules := Rules{Header: v.header, Trusted: trust(t, proxies)}
		rules.Keys, _ = ParseKeys(v.keys)
		rules.Sessions, _ = ParseSessions(v.sessions)
		if p, o := rules.Look(addr(proxy)), rules.Look(addr("192.0.2.1")); p != v.proxy || o != v.others || rules.Looks() != (p > Nowhere) || rules.LooksAtAll() != (o > Nowhere) {
			t.Errorf("%+v: of a proxy's requests %v, of others %v", v, p, o)
		}
	}
}

// TestKeysAllocateNothing, unless something is percent-encoded.
func TestKeysAllocateNothing(t *testing.T) {
	rules := Rules{}
	rules.Keys, _ = ParseKeys("cookie:id,query:id,path:/a/*/{id}")
	rules.Sessions, _ = ParseSessions("engine.io,header:Mcp-Session-Id,cookie:JSESSIONID")
	head := []byte("GET /a/b/c?x=y&sid=1." + strings.Repeat("a", TokenSize) + " HTTP/1.1\r\nHost: a\r\nCookie: a=b; JSESSIONID=1.x\r\nMcp-Session-Id: c\r\n\r\n")
	config := hash.DefaultConfig()
	tokens := 0
	if n := testing.AllocsPerRun(100, func() {
		h := Head{Request: rules.Request()}
		if h.Scan(head) != Complete || !h.Client(addr("192.0.2.1"), config).Told {
			t.Error("no key")
		}
		for range h.Tokens {
			tokens++
		}
	}); n != 0 || tokens == 0 {
		t.Errorf("%v allocations, %d tokens", n, tokens)
	}
}
