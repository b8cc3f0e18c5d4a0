// Package tomcat_test runs Tomcat under the real command, with sessions that name their worker.
package tomcat_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const catalina = "/usr/share/tomcat10/bin/catalina.sh"

// TestSessions: a session stays with its worker, whatever addresses its client comes from, and although that was replaced.
func TestSessions(t *testing.T) {
	if os.Getenv("HANDFAST_TEST_CLIENTS") == "" {
		t.Skip("in make soak: six JVMs take their time")
	}
	trial.Need(t, catalina, "tomcat10")
	listen := trial.FreeAddress(t)
	t.Setenv("CATALINA_BASE", base(t, listen))
	t.Setenv("JAVA_TOOL_OPTIONS", strings.TrimPrefix(trial.LightJava, "JAVA_TOOL_OPTIONS="))
	flags := []string{"--session", "cookie:JSESSIONID", "--new-sessions", "least", "--stop-timeout", "1s"}
	handfast, address := trial.BalanceAt(t, listen, flags, catalina, "run")
	trial.CookieSessions(t, handfast, address)
	handfast.Stop()
}

// base makes a CATALINA_BASE whose server is at an address.
func base(t *testing.T, address string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, folder := range []string{"logs", "temp", "work"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "-R", "bin", "conf", "webapps", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server := filepath.Join(dir, "conf", "server.xml")
	text, err := os.ReadFile(server)
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(address)
	said := strings.NewReplacer(`port="8080"`, `port="`+port+`"`, `address="0.0.0.0"`, `address="`+host+`"`).Replace(string(text))
	if err := os.WriteFile(server, []byte(said), 0o644); err != nil {
		t.Fatal(err)
	}
	// What maps *.jsp is Tomcat's own.
	web, err := os.ReadFile("/usr/share/tomcat10/etc/web.xml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "conf", "web.xml"), web, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
