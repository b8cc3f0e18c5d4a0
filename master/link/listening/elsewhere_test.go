package listening

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Row C4: where a process and its children listen, of all families; not what is bound only, is a
// connection, or is somebody else's.
func TestListens(t *testing.T) {
	other := listen(t)
	pid, goOn := start(t, `
def on(family, at):
    s = socket.socket(family); s.bind(at); s.listen(); return s
four, six = on(socket.AF_INET, ('127.0.0.1', 0)), on(socket.AF_INET6, ('::', 0))
idle = socket.socket(); idle.bind(('127.0.0.1', 0))
conn = socket.create_connection(four.getsockname())
if os.fork() == 0:
    child = on(socket.AF_INET6, ('::ffff:127.0.0.2', 0))
    four.close(); six.close(); s.close()
    time.sleep(1000)
`, other)
	if got := Listens(pid); len(got) != 1 { // that which it has inherited
		t.Errorf("before it listens by itself: %v", got)
	}
	goOn()
	const want = "127.0.0.1 127.0.0.1 127.0.0.2 ::"
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var got []string
		for _, at := range Listens(pid) {
			got = append(got, at.Addr().String())
		}
		slices.Sort(got)
		if strings.Join(got, " ") == want {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v, want %s", got, want)
		}
	}
}
