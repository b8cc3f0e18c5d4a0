package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/examples/trial"
	"github.com/handfast/handfast/master"
)

// startBlind runs a balancer with one worker whose log the test does not follow: stderr gets it. It is killed in the end,
// and so are its workers.
func startBlind(t *testing.T, stderr *os.File, worker string, flags ...string) *balancer {
	t.Helper()
	b := &balancer{t: t, admin: socketPath(t), addr: trial.FreeAddress(t), exited: make(chan struct{})}
	args := append([]string{"run", "--listen", b.addr, "--workers", "1", "--admin", b.admin, "--log-level", "trace"}, flags...)
	b.cmd = exec.Command(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), append(args, "--", trial.Build(t, testWorker), worker)...)
	b.cmd.Stderr = stderr
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { b.cmd.Wait(); close(b.exited) }()
	t.Cleanup(func() {
		b.cmd.Process.Kill()
		<-b.exited
	})
	if !eventually(func() bool { return b.begin("status").await() == exitOK }) {
		t.Fatal("the balancer does not come up")
	}
	b.awaitStatus("a worker", func(s *master.Status) bool { return s.Ready })
	return b
}

// await waits for the end of the command and returns its exit status.
func (a *asking) await() int {
	<-a.ended
	return a.status
}

// fullPipe returns the end to write to of a pipe that is full, and that nobody reads until read is called.
func fullPipe(t *testing.T) (w, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	w.Write(bytes.Repeat([]byte("full\n"), 1<<20))
	return w, r
}

// healthy asks the balancer by HTTP.
func (b *balancer) healthy() error {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		Dial:              func(string, string) (net.Conn, error) { return net.Dial("unix", b.admin) },
	}}
	resp, err := client.Get("http://localhost/healthz")
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = os.ErrInvalid
		}
	}
	return err
}

// TestLogThatNobodyReads: a pipe that is full keeps the master from nothing; what was left unsaid comes when somebody reads.
// Row A4: standard error is a pipe that nobody reads.
func TestLogThatNobodyReads(t *testing.T) {
	byRoutes(t, func(t *testing.T, route string) {
		w, r := fullPipe(t)
		b := startBlind(t, w, "http")
		w.Close()
		dead := b.status().Slots[0].Worker.PID
		kill(t, dead)
		b.awaitStatus("another worker", func(s *master.Status) bool { return s.Ready && s.Slots[0].Worker.PID != dead })
		b.tell("reload")
		if err := b.healthy(); err != nil {
			t.Error(err)
		}
		b.tell("upgrade")
		b.awaitStatus("an upgrade", func(s *master.Status) bool { return s.Ready && s.Upgrade.Count == 1 })
		b.mustGet(source(0), "/")
		c := b.socketFor(source(1))
		defer c.CloseNow()
		b.signal(unix.SIGTERM)
		b.awaitStatus("that it stops", func(s *master.Status) bool { return s.Stopping })
		began := time.Now()
		if !eventually(func() bool {
			b.signal(unix.SIGTERM) // the second one, if the first was long enough ago
			select {
			case <-b.exited:
				return true
			case <-time.After(50 * time.Millisecond):
				return false
			}
		}) {
			t.Fatal("a second SIGTERM does not end it")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		text, _ := io.ReadAll(r)
		if left := strings.Count(string(text), "full\n"); left*len("full\n") < len(text)-len("full\n") {
			t.Errorf("something was written although the pipe was full: %q", text)
		}
	})
}

// TestLogIsRead: when the reader goes on, it gets all, also what the program before the upgrade had to say. Row A4.
func TestLogIsRead(t *testing.T) {
	w, r := fullPipe(t)
	b := startBlind(t, w, "http")
	w.Close()
	b.tell("upgrade")
	b.awaitStatus("an upgrade", func(s *master.Status) bool { return s.Ready && s.Upgrade.Count == 1 })
	text := make(chan string)
	go func() { all, _ := io.ReadAll(r); text <- string(all) }()
	b.signal(unix.SIGTERM)
	<-b.exited
	all := <-text
	last := -1
	for _, want := range []string{"admin socket: address=", "worker ready:", "trying the new program:", "upgraded:", "stopping", "stopped"} {
		at := strings.Index(all, want)
		if at < last {
			t.Errorf("%q is missing, or before what it follows", want)
		}
		last = at
	}
	if t.Failed() {
		t.Log(strings.ReplaceAll(all, "full\n", ""))
	}
}

// TestLogReaderGoes: standard error may be a pipe whose reader is gone from the start. Row A4: `handfast run … 2>&1 | head -1`.
func TestLogReaderGoes(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	b := startBlind(t, w, "http")
	w.Close()
	b.tell("reload")
	b.signal(unix.SIGTERM)
	if <-b.exited; b.cmd.ProcessState.ExitCode() != exitOK {
		t.Errorf("%v, want exit status 0", b.cmd.ProcessState)
	}
}

// TestAccessLogWaitsForReader: an access log that is a pipe without a reader does not keep the master from starting, and the
// log says what it waits for. Row A4.
func TestAccessLogWaitsForReader(t *testing.T) {
	t.Setenv("HANDFAST_ROUTE", "master")
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, 1, options{lean: true, flags: []string{"--access-log", path}})
	b.mustGet(source(1), "/")
	if line := b.await("access log cannot be written, its lines wait"); !strings.Contains(line.Err, "nobody reads") {
		t.Errorf("err %q", line.Err)
	}
	pipe, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	text := make([]byte, 1000)
	if n, err := pipe.Read(text); !bytes.Contains(text[:n], []byte("handed_off")) {
		t.Errorf("read %q, %v", text[:n], err)
	}
}

// TestLogOnFullDisk: a disk that has no room keeps the master from nothing. Row A4; that lines are counted then is tried
// in package logging.
func TestLogOnFullDisk(t *testing.T) {
	disk, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	b := startBlind(t, disk, "http", "--access-log", "/dev/full", "--route", "master")
	disk.Close()
	for range 100 {
		b.mustGet(source(1), "/")
	}
	b.signal(unix.SIGTERM)
	if <-b.exited; b.cmd.ProcessState.ExitCode() != exitOK {
		t.Errorf("%v, want exit status 0", b.cmd.ProcessState)
	}
}
