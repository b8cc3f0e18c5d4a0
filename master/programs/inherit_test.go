package programs

import (
	"slices"
	"testing"
)

func TestInherit(t *testing.T) {
	addresses := []string{"127.0.0.1:80", "[::1]:80"}
	for program, want := range map[string]struct {
		env         []string
		nonBlocking bool
	}{
		"gunicorn":            {},
		"nginx-debug":         {},
		"/usr/sbin/nginx":     {[]string{"NGINX=3;4;"}, true},
		"/usr/bin/php-fpm8.2": {[]string{"FPM_SOCKETS=127.0.0.1:80=3,[::1]:80=4"}, false},
	} {
		c := Command{Args: []string{program}}
		if got := c.InheritedEnv(addresses, 3); !slices.Equal(got, want.env) || c.InheritsNonBlocking() != want.nonBlocking {
			t.Errorf("%s: %q, non-blocking %v", program, got, c.InheritsNonBlocking())
		}
	}
	var none Command
	if none.InheritedEnv(nil, 3) != nil || none.InheritsNonBlocking() {
		t.Error("no program has needs")
	}
}
