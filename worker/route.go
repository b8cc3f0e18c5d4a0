package worker

import (
	"net/http"
	"os"
	"strings"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/forwarded"
)

// Route returns the token by which sessions name this process, of characters a–z and 2–7, under handfast run --session; else it is
// empty. An id that ends in "." and the token, or is the token, brings its requests here, as long as this process lives, also when it was
// replaced; and then to its successor:
//
//	id := newID() + "." + worker.Route()
func Route() string { return forwarded.ParseToken(os.Getenv(fdpass.EnvRoute)).String() } // --route has the same variable

// StickyCookie wraps a handler so that each client is given a cookie of this name that brings its requests to the process that has served
// the first one; with handfast run --session cookie:NAME. The cookie is for all paths, not for scripts (HttpOnly), not sent along
// from other sites' forms (SameSite=Lax), and, where the request came by TLS, also as a proxy says in X-Forwarded-Proto, not sent without
// (Secure). A client whose worker is no more is given another one. Without --session it changes nothing.
func StickyCookie(name string, h http.Handler) http.Handler {
	route := Route()
	if route == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hasToken(r, name, route) {
			http.SetCookie(w, &http.Cookie{Name: name, Value: route, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: isSecure(r)})
		}
		h.ServeHTTP(w, r)
	})
}

// hasToken tells whether a request has a cookie with our token.
func hasToken(r *http.Request, name, route string) bool {
	cookie, err := r.Cookie(name)
	if err != nil {
		return false
	}
	token, _ := forwarded.TokenIn(cookie.Value)
	return token.String() == route
}

func isSecure(r *http.Request) bool {
	proto, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	return r.TLS != nil || strings.EqualFold(strings.TrimSpace(proto), "https")
}
