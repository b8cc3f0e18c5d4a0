package worker_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/worker"
)

const token = "abcdefghijklmnopqrstuvwxyz"

// TestStickyCookie: who has no cookie of ours is given one, which scripts and other sites' forms do not get, and with TLS nothing without. An
// id of a session may end in the token, too.
func TestStickyCookie(t *testing.T) {
	t.Setenv(fdpass.EnvRoute, token)
	if got := worker.Route(); got != token {
		t.Errorf("Route() is %q, want %q", got, token)
	}
	h := worker.StickyCookie("route", http.NotFoundHandler())
	const given = "route=" + token + "; Path=/; HttpOnly"
	for name, test := range map[string]struct {
		cookie, proto string
		tls           bool
		want          string
	}{
		"none":            {"", "", false, given + "; SameSite=Lax"},
		"ours":            {"route=" + token, "", false, ""},
		"another's":       {"route=zyxwvutsrqponmlkjihgfedcba", "", false, given + "; SameSite=Lax"},
		"another cookie":  {"session=" + token, "", false, given + "; SameSite=Lax"},
		"TLS":             {"", "", true, given + "; Secure; SameSite=Lax"},
		"TLS at a proxy":  {"", "https", false, given + "; Secure; SameSite=Lax"},
		"HTTP at a proxy": {"", "http", false, given + "; SameSite=Lax"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/page", nil)
			r.Header.Set("Cookie", test.cookie)
			r.Header.Set("X-Forwarded-Proto", test.proto)
			if test.tls {
				r.TLS = new(tls.ConnectionState)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Header().Get("Set-Cookie"); got != test.want {
				t.Errorf("Set-Cookie is %q, want %q", got, test.want)
			}
		})
	}
}

// TestNoStickyCookie: without --session there is none. The variable may be the flag --route.
func TestNoStickyCookie(t *testing.T) {
	for _, route := range []string{"", "master"} {
		t.Setenv(fdpass.EnvRoute, route)
		w := httptest.NewRecorder()
		worker.StickyCookie("route", http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if got := w.Header().Get("Set-Cookie"); got != "" || worker.Route() != "" {
			t.Errorf("%s=%q: Set-Cookie is %q, Route() %q", fdpass.EnvRoute, route, got, worker.Route())
		}
	}
}
