package clientip

import (
	"context"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestSessionIn: a session's name is the value of `sid` in the query, and nothing else is.
func TestSessionIn(t *testing.T) {
	for target, want := range map[string]string{
		"/socket.io/?EIO=4&transport=polling&t=P0abc&sid=lv_VI97HAXpY6yYWAAAB": "lv_VI97HAXpY6yYWAAAB",
		"/engine.io/?sid=a&EIO=4":             "a",
		"/?sid=a&sid=b":                       "a",
		"http://example.org/socket.io/?sid=a": "a",
		"/socket.io/?EIO=4&transport=polling": "",
		"/?sid=":                              "",
		"/?sid=&sid=b":                        "",
		"/?%73id=a%2Eb&EIO=4":                 "a.b",
		"/?bsid=a":                            "",
		"/?sidx=a":                            "",
		"/?SID=a":                             "",
		"/sid=a":                              "",
		"/&sid=a":                             "",
		"/?sid":                               "",
		"/?":                                  "",
		"*":                                   "",
		"/?sid=" + strings.Repeat("a", MaxSessionName):   strings.Repeat("a", MaxSessionName),
		"/?sid=" + strings.Repeat("a", MaxSessionName+1): "",
	} {
		if got := sessionIn(target); got != NameSession(want) {
			t.Errorf("%s: not %q", target, want)
		}
	}
	if NameSession("a") == NameSession("b") || NameSession("") != 0 {
		t.Error("names are not told apart")
	}
}

// sessionFinder peeks since there are sessions, and believes no proxy.
func sessionFinder(t testing.TB) *Finder {
	rules := rulesOf(t, elsewhere, "")
	rules.Header = ""
	return finder(t, rules, func(cfg *Config) { cfg.Sessions = func() bool { return true } })
}

const sidLine = "GET /?sid=a HTTP/1.1\r\n"

// TestNowSession: the request line names the session. Whatever else comes, the client is
// its address.
func TestNowSession(t *testing.T) {
	f := sessionFinder(t)
	for name, test := range map[string]struct {
		sent    string
		session string
		err     error
	}{
		"with a session":     {sidLine + "Host: a\r\n\r\n", "a", nil},
		"only its line":      {sidLine, "a", nil},
		"without":            {"GET / HTTP/1.1\r\n", "", nil},
		"TLS":                {"\x16\x03\x01\x02\x00", "", nil},
		"HTTP/2":             {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", nil},
		"a line without end": {"GET /" + strings.Repeat("a", f.cfg.HeaderLimit), "", nil},
		"nothing":            {"", "", ErrNoSession},
		"half a line":        {sidLine[:12], "", ErrNoSession},
		"no X-Forwarded-For": {xff("192.0.2.1"), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t)
			if test.sent != "" {
				p.send(t, test.sent)
			}
			want := f.from(here)
			want.Session = NameSession(test.session)
			if client, err := findNow(f, &p.Handoff, f.Buffer()); client != want || err != test.err {
				t.Errorf("%+v, %v, want %+v, %v", client, err, want, test.err)
			}
			p.reads(t, test.sent)
		})
	}
}

// TestNowSessionBehindProxy: a request has a client and a session.
func TestNowSessionBehindProxy(t *testing.T) {
	f := finder(t, rulesOf(t, loopback, ""), func(cfg *Config) { cfg.Sessions = func() bool { return true } })
	p := connect(t)
	p.send(t, sidLine+"X-Forwarded-For: 192.0.2.1\r\n\r\n")
	want := f.from("192.0.2.1")
	want.Session = NameSession("a")
	if client, err := findNow(f, &p.Handoff, f.Buffer()); client != want || err != nil {
		t.Errorf("%+v, %v, want %+v", client, err, want)
	}
	p = connect(t)
	p.send(t, sidLine)
	if _, err := findNow(f, &p.Handoff, f.Buffer()); err != ErrPartial {
		t.Errorf("only the request line: %v", err)
	}
}

// TestNowSessionAllocatesNothing: a request with a session stays on the straight line.
func TestNowSessionAllocatesNothing(t *testing.T) {
	f := sessionFinder(t)
	p := connect(t)
	p.send(t, sidLine)
	buffer := f.Buffer()
	if n := testing.AllocsPerRun(100, func() { findNow(f, &p.Handoff, buffer) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWaitSession: it arrives byte by byte; and when it does not, the client is known all
// the same.
func TestWaitSession(t *testing.T) {
	fdtest.NoLeaks(t)
	f := sessionFinder(t)
	p := connect(t)
	answers := p.wait(t.Context(), f)
	p.segments(t, answers, strings.Split(sidLine[:len(sidLine)-1], "")...)
	open(t, answers)
	p.segments(t, answers, "\n")
	want := f.from(here)
	want.Session = NameSession("a")
	wants(t, answers, want, nil)
	p.client.Close()
	p.file.Close()
	for name, end := range map[string]func(*pair, context.CancelFunc){
		"no time left": func(_ *pair, cancel context.CancelFunc) { cancel() },
		"half-closed":  func(p *pair, _ context.CancelFunc) { p.client.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t)
			p.send(t, sidLine[:12])
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			answers := p.wait(ctx, f)
			open(t, answers)
			end(p, cancel)
			wants(t, answers, f.from(here), nil)
			p.client.Close()
			p.file.Close()
		})
	}
}
