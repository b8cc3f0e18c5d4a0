package listening

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

// Row C2: processes that wait on one listener are counted, however they wait, and others that have it
// are not: the one that they were forked from, and those that it forks for something else.
func TestSharing(t *testing.T) {
	all := func(netip.AddrPort) bool { return true }
	for _, test := range []struct {
		name, how string
		want      int
	}{
		{"accept", "os.fork(); s.accept()", 2},
		{"epoll, each its own", "os.fork(); e = select.epoll(); e.register(s); e.poll()", 2},
		{"poll", "os.fork(); os.fork(); p = select.poll(); p.register(s); p.poll()", 4},
		{"a master and two workers", "os.fork() and os.fork() and time.sleep(1000); select.select([s], [], [])", 2},
		{"one", "s.accept()", 0},
		{"threads", "threading.Thread(target=s.accept).start(); s.accept()", 0},
		{"one whose epoll a child inherits", "e = select.epoll(); e.register(s); e.poll() if os.fork() else time.sleep(1000)", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := listen(t)
			pid, goOn := start(t, test.how, file)
			goOn()
			var pids []int
			for end := time.Now().Add(patience); len(pids) != test.want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // each looks at all processes
				pids = Sharing(pid, all)
			}
			if test.want == 0 { // once it waits
				for !waits(pid, inode(t, file)) {
					time.Sleep(time.Millisecond)
				}
				pids = Sharing(pid, all)
			}
			if len(pids) != test.want {
				t.Errorf("%v, want %d", pids, test.want)
			}
			if none := Sharing(pid, func(netip.AddrPort) bool { return false }); none != nil {
				t.Errorf("of no address: %v", none)
			}
		})
	}
	if pids := Sharing(os.Getpid(), all); pids != nil {
		t.Error(fmt.Sprint("this process: ", pids))
	}
}

// Row C2: processes of Node's cluster are known by a variable.
func TestHaving(t *testing.T) {
	pid, goOn := start(t, `
subprocess.Popen(['sleep', '1000'], env={'NODE_UNIQUE_ID': '1'}); subprocess.Popen(['sleep', '1000'], env={'A': 'b', 'NODE_UNIQUE_ID': ''})
subprocess.Popen(['sleep', '1000'], env={'MY_NODE_UNIQUE_ID': '1', 'A': 'NODE_UNIQUE_ID=1'})
`, listen(t))
	goOn()
	for end := time.Now().Add(patience); len(Having(pid, "NODE_UNIQUE_ID")) != 2 || len(Having(pid, "MY_NODE_UNIQUE_ID")) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(Having(pid, "NODE_UNIQUE_ID"))
		}
	}
}
