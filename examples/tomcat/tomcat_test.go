// Package tomcat_test runs Tomcat under the real command, with sessions that name their worker.
package tomcat_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

const catalina = "/usr/share/tomcat10/bin/catalina.sh"

// visitor has a session, and another address with each request.
type visitor struct {
	jar     http.CookieJar
	address int
	slot    int
	visits  int
}

// visit wants to be counted where it was before, by a worker of a generation.
func (v *visitor) visit(t *testing.T, address string, generation int) {
	t.Helper()
	v.address++
	client := trial.ClientAt(trial.Loopback(v.address))
	client.Jar = v.jar
	defer client.CloseIdleConnections()
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var slot, got, visits int
	if _, err := fmt.Sscanf(string(body), "slot=%d generation=%d visits=%d", &slot, &got, &visits); err != nil {
		t.Fatalf("%s: %q", response.Status, body)
	}
	if v.visits++; v.visits == 1 {
		v.slot = slot
	}
	if slot != v.slot || got != generation || visits != v.visits {
		t.Errorf("%s, want slot %d, generation %d and visit %d", body, v.slot, generation, v.visits)
	}
}

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
	visitors := make([]*visitor, 2*trial.Workers)
	slots := map[int]bool{}
	for i := range visitors {
		jar, _ := cookiejar.New(nil)
		visitors[i] = &visitor{jar: jar, address: 10 * i}
		for range 3 {
			visitors[i].visit(t, address, 1)
		}
		slots[visitors[i].slot] = true
	}
	if len(slots) != trial.Workers {
		t.Errorf("sessions are in slots %v", slots)
	}
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	for _, v := range visitors {
		v.visit(t, address, 1)
	}
	jar, _ := cookiejar.New(nil)
	(&visitor{jar: jar, address: 200, slot: -1}).visit(t, address, 2)
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
