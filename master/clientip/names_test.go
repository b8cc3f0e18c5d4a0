package clientip

import (
	"math/rand/v2"
	"testing"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

// TestNames: a token says what it was made for, and to nobody without the secret. One that is changed, or made up, says
// nothing.
func TestNames(t *testing.T) {
	names, others := NewNames([SecretSize]byte{1}), NewNames([SecretSize]byte{2})
	seen := make(map[forwarded.Token]bool)
	for _, name := range []Name{{}, {0, 1, 1}, {1, 1, 1}, {0, 2, 1}, {0, 1, 2}, {hash.MaxSlots - 1, 1<<32 - 1, 1<<32 - 1}} {
		token := names.Token(name)
		if got, found := names.Name(token); !found || got != name {
			t.Errorf("%v is %s, and that is %v, %v", name, token, got, found)
		}
		if got, found := others.Name(token); found {
			t.Errorf("%s is %v with another secret", token, got)
		}
		if again, found := forwarded.TokenIn("id." + token.String()); !found || again != token {
			t.Errorf("%s is not found at the end of an id", token)
		}
		for i := range token {
			changed := token
			if changed[i] = 'a'; changed == token {
				changed[i] = 'q' // differs in a bit that counts, also at the end
			}
			if got, found := names.Name(changed); found && i < len(token)-1 {
				t.Errorf("%s, which was made of %s, is %v", changed, token, got)
			}
		}
		if seen[token] {
			t.Errorf("%v has another one's token", name)
		}
		seen[token] = true
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		var token forwarded.Token
		for i := range token {
			token[i] = "abcdefghijklmnopqrstuvwxyz234567"[random.IntN(32)]
		}
		if got, found := names.Name(token); found {
			t.Fatalf("%s, which nobody made, is %v", token, got)
		}
	}
}

// TestNowNamed: where the id of a session is, and whom it names.
func TestNowNamed(t *testing.T) {
	names := NewNames([SecretSize]byte{1})
	name, other := Name{3, 2, 7}, Name{1, 1, 1}
	id, foreign := "x."+names.Token(name).String(), "x."+NewNames([SecretSize]byte{2}).Token(other).String()
	rules := forwarded.Rules{}
	rules.Keys, _ = forwarded.ParseKeys("cookie:key")
	rules.Sessions, _ = forwarded.ParseSessions("engine.io,header:Mcp-Session-Id,cookie:id")
	f := finder(t, rules, func(cfg *Config) { cfg.Names = names })
	for what, v := range map[string]struct {
		head string
		want Name
		told bool
	}{
		"target":           {"GET /?sid=" + id + " HTTP/1.1\r\n", name, false},
		"header":           {"GET / HTTP/1.1\r\nmcp-session-id: " + id + "\r\n", name, false},
		"cookie":           {"GET / HTTP/1.1\r\nCookie: id=" + id + "; key=a\r\n", name, true},
		"none":             {"GET / HTTP/1.1\r\nHost: a\r\n", Name{}, false},
		"of somebody else": {"GET /?sid=" + foreign + " HTTP/1.1\r\nCookie: key=a\r\n", Name{}, true},
		"the second one":   {"GET /?sid=" + foreign + " HTTP/1.1\r\nMcp-Session-Id: " + id + "\r\n", name, false},
	} {
		head := v.head + "\r\n"
		p := connect(t)
		p.send(t, head)
		got, err := findNow(f, &p.Handoff, f.Buffer())
		if err != nil || got.Name != v.want || got.Told != v.told {
			t.Errorf("%s: %+v, %v, want %v", what, got, err, v.want)
		}
	}
}

// TestNamesAllocateNothing when they are read, however wrong what they read is.
func TestNamesAllocateNothing(t *testing.T) {
	names := NewNames([SecretSize]byte{1})
	token := names.Token(Name{3, 2, 7})
	if n := testing.AllocsPerRun(100, func() { names.Name(token); names.Name(forwarded.Token{}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkName(b *testing.B) {
	names := NewNames([SecretSize]byte{1})
	token := names.Token(Name{3, 2, 7})
	for b.Loop() {
		names.Name(token)
	}
}
