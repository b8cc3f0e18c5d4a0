package frameworks_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

// TestSessions: sessions of frameworks, in the memory of a worker, come back to it by a cookie that names it.
func TestSessions(t *testing.T) {
	for name, row := range map[string]struct {
		soak    bool // only in make soak: six interpreters take their time
		command func(t *testing.T, address string) []string
	}{
		"PHP": {false, func(t *testing.T, address string) []string {
			t.Setenv("SESSIONS", t.TempDir())
			return []string{trial.Need(t, "php", "php-cli"), "-n", "-q", "-S", address, "session.php"}
		}},
		"Express": {false, func(t *testing.T, address string) []string {
			node, dir := trial.Install(t, "session.js")
			host, port, _ := net.SplitHostPort(address)
			t.Setenv("HOST", host)
			t.Setenv("PORT", port)
			return []string{node, filepath.Join(dir, "session.js")}
		}},
		"Flask": {true, func(t *testing.T, address string) []string {
			trial.NeedModule(t, "flask", "python3-flask")
			return []string{trial.Need(t, "gunicorn", "gunicorn"), "-b", address, "--threads", "4", "session:app"}
		}},
		"Rack": {true, func(t *testing.T, address string) []string {
			return []string{trial.Need(t, "puma", "puma"), "-b", "tcp://" + address, "-t", "1:4", "--quiet", "session.ru"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if row.soak && os.Getenv("HANDFAST_TEST_CLIENTS") == "" {
				t.Skip("in make soak")
			}
			listen := trial.FreeAddress(t)
			flags := []string{"--session", "cookie:route", "--new-sessions", "least", "--stop-timeout", "1s"}
			handfast, address := trial.BalanceAt(t, listen, flags, row.command(t, listen)...)
			trial.CookieSessions(t, handfast, address)
			handfast.Stop()
		})
	}
}
