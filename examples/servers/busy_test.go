package servers_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
)

const (
	busyClients = 8
	// busyPause is what each of them takes between two requests.
	busyPause = 20 * time.Millisecond
	// soon is how long a slot may be without a worker that is ready, beyond what the same servers took to start
	// with no clients: as long again for each, since the machine may have become busier.
	soon = 20 * time.Second
)

// limit is how long n starts of a server that is never without clients may take.
func (st *stage) limit(n int) time.Duration { return time.Duration(n) * (soon + 2*st.took) }

// busy are servers whose slot is hardly ever without clients: each of eight asks again a moment after it was answered, and the
// slow ones take as long over each.
var busy = []*server{
	{
		name: "gunicorn", flags: v4, link: "any",
		command: "gunicorn -b 0.0.0.0:8080 slow:app", needs: [][2]string{runsApp},
		build: put("slow.py", "import time\nimport app as at_once\n\ndef app(environ, start_response):\n    time.sleep(0.02)\n    return at_once.app(environ, start_response)\n"),
	},
	{
		name: "php", flags: v4, link: "any",
		command: "php -n -q -S 0.0.0.0:8080 slow.php", needs: [][2]string{{"php", "php-cli"}},
		build: put("slow.php", "<?php usleep(20000); require 'who.php';\n"),
	},
	{
		name: "accept loop", flags: v4, link: "any",
		command: "/usr/bin/python3 loop.py 8080", needs: [][2]string{python},
		build: put("loop.py", acceptLoop),
	},
	{
		name: "nginx", flags: "--listen :8080", link: "any",
		command: "nginx -p . -c nginx.conf", needs: [][2]string{{"nginx", "nginx"}},
	},
	{
		name: "hypercorn", flags: v4, link: "any",
		command: "hypercorn -w 2 -b 0.0.0.0:8080 asgi:app", needs: [][2]string{{"hypercorn", "python3-hypercorn"}},
	},
	{
		name: "uvicorn", flags: v4, link: "any", slow: true,
		command: "/usr/bin/python3 -m uvicorn --workers 2 --port 8080 --host 0.0.0.0 --no-access-log asgi:app", needs: [][2]string{python},
		build: needModule("uvicorn"),
	},
	{
		name: "sshd", flags: v4, link: "any",
		command: "/usr/sbin/sshd -D -e -f sshd.conf -h $PWD/host_key", needs: [][2]string{{"sshd", "openssh-server"}, {"ssh-keygen", "openssh-client"}}, ask: askSSH,
		build: putHostKey,
	},
	{
		name: "postgresql", flags: v4 + " --user postgres", link: "any", alone: true, slow: true,
		command: "/usr/lib/postgresql/15/bin/postgres -D data{slot} -h 0.0.0.0 -p 8080 -k .", needs: [][2]string{{"/usr/lib/postgresql/15/bin/postgres", "postgresql"}},
		ask: askPostgres, build: putDatabases,
	},
	{
		name: "tomcat", flags: v4, link: "any", slow: true,
		command: "/usr/share/tomcat10/bin/catalina.sh run", needs: [][2]string{{"/usr/share/tomcat10/bin/catalina.sh", "tomcat10"}},
		env: []string{"CATALINA_BASE=$DIR/tomcat"}, ask: askKept, build: putTomcat,
	},
	{
		name: "prosody", flags: v4, link: "any",
		command: "prosody -F --config prosody.cfg.lua", needs: [][2]string{{"prosody", "prosody"}}, ask: askXMPP,
	},
}

const acceptLoop = `import os, socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', int(sys.argv[1])))
s.listen(128)
while True:
    c, peer = s.accept()
    try:
        c.recv(4096)
        time.sleep(0.02)
        text = 'slot=%s pid=%d generation=%s client=%s\n' % (os.environ['HANDFAST_SLOT'], os.getpid(), os.environ['HANDFAST_GENERATION'], peer[0])
        c.sendall(('HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(text), text)).encode())
    except OSError:
        pass
    c.close()
`

func put(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)) }
}

// TestBusy: a server that is never without clients is ready within seconds, after kill -9 of its first
// process and of a child, and in a reload; what it leaves behind answers nobody; and handfast refuses
// no client. (Rows A1, A2 and A3.)
func TestBusy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("some start only as root")
	}
	for _, s := range busy {
		if s.slow && !everything {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			st := s.start(t, nil)
			l := st.crowd()
			l.awaitMore("before", busyClients)

			first, generation := st.current(l.slot)
			syscall.Kill(first, syscall.SIGKILL)
			l.awaitSuccessor(first, "kill -9 of the first process")
			first, _ = st.current(l.slot)
			if children := childrenOf(first); len(children) > 0 {
				syscall.Kill(children[len(children)-1], syscall.SIGKILL)
				l.awaitMore("after kill -9 of a child", 2*busyClients)
			}
			began := time.Now()
			st.process.Process.Signal(syscall.SIGUSR2)
			if st.alone {
				st.await("reload failed", 1)
			} else {
				st.await("reload finished", 1)
				generation++
			}
			if took := time.Since(began); took > st.limit(slots) {
				t.Errorf("the reload took %v, the start %v", took, st.took)
			}
			l.awaitNoOrphans(generation)
			l.awaitMore("after the reload", 2*busyClients)
			l.stop()
			st.process.Stop()
			if left := accepting(t, st.port()); len(left) > 0 {
				t.Errorf("processes %v accept although handfast was stopped", left)
			}
		})
	}
}

// crowd is the clients of one slot.
type crowd struct {
	*stage
	slot    int
	ended   atomic.Bool
	running sync.WaitGroup
	served  atomic.Int64

	mu     sync.Mutex
	failed []error // a connection each
}

func (st *stage) crowd() *crowd {
	l := &crowd{stage: st, slot: slots - 1}
	for i, n := 0, 0; n < busyClients; i++ {
		client := netip.AddrFrom4([4]byte{127, 9, 2, byte(1 + i)})
		if slotOf(client) != l.slot {
			continue
		}
		n++
		l.running.Go(func() {
			for !l.ended.Load() {
				began := time.Now()
				_, err := st.get(client)
				switch {
				case err == nil || errors.Is(err, errGone):
					l.served.Add(1)
				case errors.Is(err, errNotYet):
				case errors.Is(err, errRefused) || strings.Contains(err.Error(), "502 Bad Gateway"):
					if waited := time.Since(began); waited < timeout {
						st.t.Errorf("client %v was refused after %v", client, waited)
					}
				default:
					l.mu.Lock()
					l.failed = append(l.failed, err)
					l.mu.Unlock()
				}
				time.Sleep(busyPause)
			}
		})
	}
	return l
}

// awaitMore waits for so many more answers.
func (l *crowd) awaitMore(what string, n int64) {
	l.t.Helper()
	until := l.served.Load() + n
	trial.Eventually(l.t, "answers "+what, func() bool { return l.served.Load() >= until })
}

// awaitSuccessor waits until the slot has another worker that is ready, and nobody else accepts there.
func (l *crowd) awaitSuccessor(of int, after string) {
	l.t.Helper()
	began := time.Now()
	trial.Eventually(l.t, "ready after "+after, func() bool {
		pid, _ := l.current(l.slot)
		return pid != 0 && pid != of
	})
	if took := time.Since(began); took > l.limit(1) {
		l.t.Errorf("the slot had no worker that was ready for %v after %s, at the start for %v", took, after, l.took)
	}
	l.awaitMore("after "+after, 2*busyClients)
	l.awaitNoOrphans(1)
}

// awaitNoOrphans waits until all that accept are of the workers of a generation.
func (l *crowd) awaitNoOrphans(generation int) {
	l.t.Helper()
	var others []string
	defer func() {
		if l.t.Failed() {
			l.t.Logf("others that accept: %v", others)
		}
	}()
	trial.Eventually(l.t, fmt.Sprintf("only workers of generation %d accept", generation), func() bool {
		workers := []int{l.process.Process.Pid}
		for slot := range slots {
			pid, of := l.current(slot)
			if of != generation {
				return false
			}
			workers = append(workers, pid)
		}
		others = nil
		for _, pid := range accepting(l.t, l.port()) {
			if !slices.ContainsFunc(ancestors(pid), func(above int) bool { return slices.Contains(workers[1:], above) }) && pid != workers[0] {
				command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				others = append(others, fmt.Sprintf("%d %q", pid, command))
			}
		}
		return len(others) == 0
	})
}

// stop ends it. Who was killed took what it had accepted along: from each client one connection at
// most, for each of two kills; a server that cannot finish takes one more in a reload.
func (l *crowd) stop() {
	l.t.Helper()
	l.ended.Store(true)
	l.running.Wait()
	l.t.Logf("%d answers, %d connections lost by two kills and a reload", l.served.Load(), len(l.failed))
	if len(l.failed) > 2*busyClients {
		l.t.Errorf("%d connections failed: %v", len(l.failed), errors.Join(l.failed...))
	}
}

// current returns the worker that was ready last in a slot, 0 if it has ended.
func (st *stage) current(slot int) (pid, generation int) {
	st.events("worker ready", func(e entry) bool {
		if e.Slot == slot {
			pid, generation = e.PID, e.Generation
		}
		return false
	})
	if st.events("worker exited", func(e entry) bool { return e.PID == pid }) > 0 {
		return 0, generation
	}
	return pid, generation
}

func (st *stage) port() uint16 {
	_, text, _ := strings.Cut(st.address, ":")
	port, _ := strconv.ParseUint(text, 10, 16)
	return uint16(port)
}

// childrenOf returns the processes that a process has started.
func childrenOf(pid int) (children []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				children = append(children, n)
			}
		}
	}
	return children
}
