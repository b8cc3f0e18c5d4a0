package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/logging"
)

// startBlind runs a balancer with one worker whose log the test does not follow: stderr gets it. It is killed in the end,
// and so are its workers.
func startBlind(t *testing.T, stderr *os.File, worker string, flags ...string) *instance {
	t.Helper()
	b := &instance{t: t, admin: socketPath(t), addr: trial.FreeAddress(t), exited: make(chan struct{})}
	args := append([]string{"run", "--listen", b.addr, "--workers", "1", "--admin", b.admin, "--log-level", "trace"}, flags...)
	b.cmd = exec.Command(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), append(args, "--", trial.Build(t, testWorker), worker)...)
	b.cmd.Stdout, b.cmd.Stderr = stderr, stderr
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

// full is what a full pipe is full of: a page is a number of these.
const full = "is full\n"

// fullPipe returns the end to write to of a pipe that is full, and that nobody reads until read is called.
func fullPipe(t *testing.T) (w, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte(full), os.Getpagesize()/len(full))
	raw.Write(func(fd uintptr) bool {
		for err == nil {
			_, err = unix.Write(int(fd), page)
		}
		return true
	})
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	return w, r
}

// healthy asks the balancer by HTTP.
func (b *instance) healthy() error {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", b.admin)
		},
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
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		w, r := fullPipe(t)
		worker, flags := "http", []string(nil)
		if route == "master" { // what workers print waits, too
			worker, flags = "talks", []string{"--log-json"}
		}
		b := startBlind(t, w, worker, flags...)
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
		if strings.Count(string(text), full)*len(full) != len(text) {
			t.Errorf("something was written although the pipe was full: %q", text)
		}
	})
}

// TestLogIsRead: when the reader goes on, it gets all, also what the program before the upgrade had to say. Row A4.
func TestLogIsRead(t *testing.T) {
	t.Parallel()
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
		t.Log(strings.ReplaceAll(all, full, ""))
	}
}

// TestLogReaderGoes: standard error may be a pipe whose reader is gone from the start. Row A4: `handfast run … 2>&1 | head -1`.
func TestLogReaderGoes(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// TestWorkerOutputJSON: with --log-json each line of a worker is an object that says whose it is; its last words are in the log when it fails,
// in the error of the reload, and in the status. By an upgrade nothing of it is lost. Row C14: plain text inside --log-json.
func TestWorkerOutputJSON(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	b := start(t, 1, options{lean: true, flags: []string{"--min-uptime", "0s"}, worker: []string{"talks", broken}})
	b.hears("talks", 1)
	b.mu.Lock()
	for _, l := range b.lines {
		if l.text == "talks" && (l.Stream != "stderr" || l.PID == 0 || l.Generation != 1 || l.Level != "info") {
			t.Errorf("%+v", l)
		}
	}
	b.mu.Unlock()
	b.upgrades(1)
	b.mustGet(source(0), "/")
	b.hears("asked", 1) // by the worker, after the upgrade
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if text := b.begin("reload").ends(exitFailure); !strings.Contains(text, "it wrote last:\ntalks\nbroken: no such thing") {
		t.Errorf("reload says %q", text)
	}
	if l := b.await("worker exited"); l.LastWords != "talks\nbroken: no such thing" {
		t.Errorf("the log says %+v", l)
	}
	kill(t, b.worker(0))
	b.awaitStatus("last words", func(s *master.Status) bool {
		return s.Slots[0].LastEnd != nil && strings.Contains(s.Slots[0].LastEnd.LastWords, "no such thing")
	})
}

// TestWorkerOutputTerminal: on a terminal each line of a worker comes behind its slot, and the worker has a terminal, too. What it prints
// in its last moment is there, an upgrade changes nothing, and closing the terminal does not keep the master from stopping. Row C14.
func TestWorkerOutputTerminal(t *testing.T) {
	t.Parallel()
	ours, theirs := openTerminal(t)
	b := startBlind(t, theirs, "talks", "--worker-link", "native")
	var mu sync.Mutex
	var screen strings.Builder
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := ours.Read(buffer)
			if err != nil {
				return
			}
			mu.Lock()
			screen.Write(buffer[:n])
			mu.Unlock()
		}
	}()
	shows := func(text string) {
		t.Helper()
		if !eventually(func() bool { mu.Lock(); defer mu.Unlock(); return strings.Contains(screen.String(), text) }) {
			t.Fatalf("the screen does not show %q: %q", text, screen.String())
		}
	}
	shows("slot 0 | talks, to a terminal\r\n")
	b.tell("upgrade")
	b.awaitStatus("an upgrade", func(s *master.Status) bool { return s.Ready && s.Upgrade.Count == 1 })
	b.mustGet(source(0), "/")
	shows("slot 0 | asked\r\n")
	b.signal(unix.SIGTERM)
	<-b.exited
	shows("slot 0 | bye\r\n")
	shows("stopped")
}

// openTerminal returns both ends of a terminal that turns line feeds into carriage returns and line feeds, as most do.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	number := 0
	raw, _ := ours.SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	})
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// TestOutputMode: what auto takes. Row C14.
func TestOutputMode(t *testing.T) {
	for _, c := range []struct {
		word              string
		terminal, logJSON bool
		want              string
	}{
		{"auto", true, false, "prefix"}, {"auto", false, false, "raw"}, {"auto", true, true, "json"}, {"auto", false, true, "json"},
		{"raw", true, true, "raw"}, {"prefix", false, true, "prefix"}, {"json", false, false, "json"},
	} {
		if got := outputMode(c.word, c.terminal, c.logJSON); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestFloodingWorker: what a worker makes the master say is said a few times a second, whatever it does, and how often it was not. Row B4:
// a Node worker that asks for a 129th port wrote 14,793 lines in 5 s.
func TestFloodingWorker(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, `
server.listen(PORT);
let failed = 0;
let more = () => {
  const s = net.createServer();
  s.on('error', () => { failed++; setImmediate(more); });
  s.listen(0, more);
};
for (let i = 0; i < 8; i++) more();
setTimeout(() => { say('refused', failed); more = () => {}; }, 1600);
`, nodeOptions{lean: true})
	said := strings.Fields(b.hears("refused", 1)[0])
	if refused, _ := strconv.Atoi(said[1]); refused < 100 {
		t.Fatalf("the worker was refused %d times, which is no flood", refused)
	}
	lines := b.log("workers share no more listeners of their own")
	if most := logging.Few.Burst + 4; len(lines) == 0 || len(lines) > most {
		t.Errorf("%d lines, want at most %d", len(lines), most)
	}
	if !slices.ContainsFunc(lines, func(l logLine) bool { return strings.Contains(l.text, `"left_out":`) }) {
		t.Errorf("none says how many were left out: %v", lines)
	}
}
