package forwarded

import (
	"strings"
	"testing"

	"github.com/handfast/handfast/hash"
)

// byHeader is the zero Key for the empty name.
func byHeader(name string) Key {
	if name == "" {
		return Key{}
	}
	return Key{ByHeader, name}
}

func TestParseKey(t *testing.T) {
	for text, want := range map[string]Key{
		"address":          {},
		"header:X-Session": {ByHeader, "X-Session"},
		"header:address":   {ByHeader, "address"},
		"header:header":    {ByHeader, "header"},
	} {
		key, err := ParseKey(text)
		if err != nil || key != want || key.String() != text {
			t.Errorf("%q is %+v, error %v, again %q", text, key, err, key)
		}
	}
	for _, text := range []string{"", "Address", "address:", "address:X", "header", "header:", "header: X", "header:X:Y", "header:X Y", "cookie:a", "X-Session", " address"} {
		key, err := ParseKey(text)
		if err == nil || key != (Key{}) {
			t.Errorf("%q is accepted as %q", text, key)
		} else if !strings.Contains(err.Error(), "want address or header:NAME") {
			t.Errorf("the error for %q has no remedy: %v", text, err)
		}
	}
}

// TestKeyHash: a client that is named on its own has the key that its requests have.
func TestKeyHash(t *testing.T) {
	config := hash.DefaultConfig()
	for _, v := range []struct {
		key    Key
		client string
		want   hash.Key
		fails  bool
	}{
		{Key{}, "192.0.2.1", config.Key(addr("192.0.2.1")), false},
		{Key{}, "me", 0, true},
		{byHeader("X-User"), "me", config.Text("me"), false},
		{byHeader("X-User"), "192.0.2.1", config.Text("192.0.2.1"), false},
	} {
		if got, err := v.key.Hash(v.client, config); got != v.want || (err != nil) != v.fails {
			t.Errorf("%v, %q: %v, %v, want %v", v.key, v.client, got, err, v.want)
		}
	}
}

// TestRequest: of each kind of key, where it is and where it is not.
func TestRequest(t *testing.T) {
	config := hash.DefaultConfig()
	byAddress, text := config.Key(addr("192.0.2.1")), config.Text
	type line struct{ name, value string }
	client := line{"X-Forwarded-For", "192.0.2.1"}
	for _, v := range []struct {
		what  string
		key   Key
		from  string
		lines []line
		want  Client
	}{
		{"address", Key{}, proxy, []line{client, {"X-User", "me"}}, Client{addr("192.0.2.1"), byAddress}},
		{"header", byHeader("X-User"), proxy, []line{client, {"X-User", "me"}}, Client{addr("192.0.2.1"), text("me")}},
		{"header, space around it", byHeader("X-User"), proxy, []line{client, {"x-user", " \tme "}}, Client{addr("192.0.2.1"), text("me")}},
		{"header, the last one", byHeader("X-User"), proxy, []line{{"X-User", "you"}, client, {"X-User", "me"}}, Client{addr("192.0.2.1"), text("me")}},
		{"header, the last one is empty", byHeader("X-User"), proxy, []line{client, {"X-User", "you"}, {"X-User", ""}}, Client{addr("192.0.2.1"), byAddress}},
		{"no header", byHeader("X-User"), proxy, []line{client}, Client{addr("192.0.2.1"), byAddress}},
		{"header from a stranger", byHeader("X-User"), "192.0.2.1", []line{{"X-Forwarded-For", "192.0.2.2"}, {"X-User", "me"}}, Client{addr("192.0.2.1"), byAddress}},
	} {
		rules := Rules{Header: DefaultHeader, Key: v.key, Trusted: trust(t, proxies)}
		request := rules.Request()
		for _, line := range v.lines {
			request.Header(line.name, line.value)
		}
		if got := request.Client(addr(v.from), config); got != v.want {
			t.Errorf("%s: %v, want %v", v.what, got, v.want)
		}
	}
}
