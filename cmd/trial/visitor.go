package trial

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"syscall"
	"testing"
)

// visitor has a session by cookies, and another address with each request. Servers answer it with the line
// "slot=0 generation=1 visits=1": visits are the session's, as the worker that has begun it has counted them.
type visitor struct {
	jar     http.CookieJar
	address int
	slot    int
	visits  int
}

func newVisitor(i int) *visitor {
	jar, _ := cookiejar.New(nil) // never fails
	return &visitor{jar: jar, address: 10 * i}
}

// visit wants to be counted where it was before, by a worker of a generation.
func (v *visitor) visit(t *testing.T, address string, generation int) {
	t.Helper()
	v.address++
	client := ClientAt(Loopback(v.address))
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
		t.Errorf("%s, want slot %d, generation %d and visit %d", strings.TrimSpace(string(body)), v.slot, generation, v.visits)
	}
}

// CookieSessions tries a server under handfast, whose sessions come back by a cookie: each stays with its worker, whatever
// addresses its client comes from, and although a reload replaces that; a new one begins with a new worker.
func CookieSessions(t *testing.T, handfast *Process, address string) {
	t.Helper()
	visitors := make([]*visitor, 2*Workers)
	slots := map[int]bool{}
	for i := range visitors {
		visitors[i] = newVisitor(1 + i)
		for range 3 {
			visitors[i].visit(t, address, 1)
		}
		slots[visitors[i].slot] = true
	}
	if len(slots) != Workers {
		t.Errorf("sessions are in slots %v", slots)
	}
	handfast.Process.Signal(syscall.SIGUSR2)
	handfast.Await("reload", 1, func(line string) bool { return strings.Contains(line, `"reload finished"`) })
	for _, v := range visitors {
		v.visit(t, address, 1)
	}
	newVisitor(20).visit(t, address, 2)
}
