package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
)

// notifyServer listens, says READY=1 when a file is there, and sends WATCHDOG=1 until somebody asks for /quiet. It serves on then.
const notifyServer = `
import os, select, socket, sys, time
host, port = sys.argv[1].split(':')
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.connect('\0' + os.environ['NOTIFY_SOCKET'][1:])
pause = int(os.environ['WATCHDOG_USEC']) / 2e6
s = socket.create_server((host, int(port)), backlog=100)
quiet = False
n.send(b'STATUS=loading')
while True:
    if pause and os.path.exists(sys.argv[2]):
        n.send(b'READY=1\nSTATUS=serving since now')
    if not quiet:
        n.send(b'WATCHDOG=1')
    if not select.select([s], [], [], min(pause, 0.2))[0]:
        continue
    c, peer = s.accept()
    request = c.recv(65536)
    quiet = quiet or b' /quiet ' in request
    body = b'slot=0 pid=%d generation=1 client=%s\n' % (os.getpid(), peer[0].encode())
    c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(body), body))
    c.close()
    if b' /enough ' in request:
        s.close()
        n.send(b'STOPPING=1')
        time.sleep(1e6)
`

// TestSdNotify: a worker is ready when it has said so, its status is shown, it hangs when it stops sending WATCHDOG=1, also after an upgrade,
// and its slot gets another when it says that it stops.
func TestSdNotify(t *testing.T) {
	t.Parallel()
	address, gate := trial.FreeAddress(t), filepath.Join(t.TempDir(), "gate")
	b := start(t, 1, options{
		flags: []string{"--listen", address, "--worker-link", "any", "--route", "kernel", "--sd-notify", "--ready-when", "notify", "--watchdog", "2s", "--when-hung", "replace",
			"--stop-timeout", "1s", "--drain-timeout", "1s"},
		change:   instead(debianPython(t), "-c", notifyServer, address, gate),
		notReady: true,
	})
	b.await("worker started")
	b.awaitStatus("a worker that loads", func(s *master.Status) bool { return s.Slots[0].Next != nil && s.Slots[0].Next.Says == "loading" })
	if n := len(b.log("worker ready")); n > 0 {
		t.Error("ready before it has said so")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.await("worker ready")
	b.awaitStatus("its status", func(s *master.Status) bool {
		return s.Slots[0].Worker != nil && s.Slots[0].Worker.Says == "serving since now"
	})
	if text := b.tell("status"); !strings.Contains(text, "slot 0 says: serving since now\n") {
		t.Error(text)
	}
	first := b.worker(0)
	b.signal(unix.SIGHUP)
	b.await("upgraded")
	if a := b.mustGet(source(0), "/quiet"); a.pid != first {
		t.Errorf("%+v", a)
	}
	if l := b.await("worker does not answer the watchdog"); l.PID != first {
		t.Error(l.text)
	}
	b.awaitCount("worker ready", 2)
	second := b.worker(0)
	b.mustGet(source(0), "/enough")
	b.await("worker takes no more connections")
	b.awaitCount("worker ready", 3)
	if a := b.mustGet(source(0), "/"); a.pid == second || a.pid == first {
		t.Errorf("%+v", a)
	}
}
