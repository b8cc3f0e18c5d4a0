package output

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// patience bounds what should happen soon.
const patience = 30 * time.Second

// sink keeps what it gets. While it is held, those who pass wait.
type sink struct {
	held sync.Mutex
	mu   sync.Mutex
	text string
}

func (s *sink) Pass(lines []byte) {
	s.held.Lock()
	defer s.held.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += string(lines)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

// says waits until the sink has got this, and nothing else.
func (s *sink) says(t *testing.T, want string) {
	t.Helper()
	if !fdtest.Poll(func() bool { return s.String() == want }) {
		t.Fatalf("written %q, want %q", s, want)
	}
}

var seat = supervisor.Seat{Slot: 2, Slots: 11, Generation: 3}

// worker is a shell that writes to an Output.
type worker struct {
	*Output
	p supervisor.Process
}

// start runs a script. The collector is closed when the test ends.
func start(t *testing.T, cfg Config, script string) (*Collector, worker) {
	t.Helper()
	c := New(cfg)
	o, err := c.NewOutput(seat)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, run(t, o.(*Output), cfg.Owner, script)
}

func run(t *testing.T, o *Output, as *syscall.Credential, script string) worker {
	t.Helper()
	stdout, stderr := o.Files()
	p, err := supervisor.StartProcess(supervisor.Spec{
		Command: []string{"sh", "-c", script}, Stdout: stdout, Stderr: stderr, Rights: supervisor.Rights{User: as},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Started(p.PID())
	t.Cleanup(func() {
		p.Signal(syscall.SIGKILL)
		p.Wait()
	})
	return worker{o, p}
}

// ends waits for the end of the process, and returns its last words.
func (w worker) ends(t *testing.T) string {
	w.p.Await()
	words := w.LastWords(patience)
	w.Close()
	return words
}

// terminal is one that the master might have, of 100 columns.
func terminal(t *testing.T) *os.File {
	ours, theirs, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	fdtest.Control(t, theirs, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	})
	return theirs
}

// TestPrefix: each line of both files comes behind the slot, in order, also the last one that does not end; and a terminal
// stays one, with the size of ours less the prefix. Row C14.
func TestPrefix(t *testing.T) {
	const script = `if test -t 1 && test -t 2; then stty size <&1; else echo pipe; fi; echo err >&2; echo; printf '\033[1mbold\033[0m'`
	for name, first := range map[string]string{"terminal": "40 90", "pipe": "pipe"} {
		t.Run(name, func(t *testing.T) {
			fdtest.NoLeaks(t)
			out := &sink{}
			cfg := Config{Form: Prefix, Stdout: out, Stderr: out}
			if name == "terminal" {
				cfg.Terminal = terminal(t)
			}
			_, w := start(t, cfg, script)
			words := w.ends(t)
			out.says(t, "slot  2 | "+first+"\nslot  2 | err\nslot  2 | \nslot  2 | \033[1mbold\033[0m\n")
			if want := first + "\nerr\nbold"; words != want {
				t.Errorf("last words %q, want %q", words, want)
			}
		})
	}
}

// TestResize: terminals of workers follow ours. Row C14.
func TestResize(t *testing.T) {
	out := &sink{}
	mine := terminal(t)
	c, w := start(t, Config{Form: Prefix, Stdout: out, Stderr: out, Terminal: mine}, "exec sleep 60")
	fdtest.Control(t, mine, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	})
	c.resized <- unix.SIGWINCH
	if !fdtest.Poll(func() bool {
		size, err := windowSize(w.streams[0].file)
		return err == nil && size.Col == 70 && size.Row == 24
	}) {
		t.Error("the worker's terminal keeps its size")
	}
}

// TestJSON: each line is an object, from which exactly what the worker wrote can be had again: lines that are long, that are no
// UTF-8, that hold what JSON must escape. Row C14: plain text inside --log-json.
func TestJSON(t *testing.T) {
	fdtest.NoLeaks(t)
	out, errs := &sink{}, &sink{}
	long := strings.Repeat("é", maxLine) + "\n"
	written := "{\"a\": \"<b> & \x01\"}\r\n\xff\xfe\n\n" + long
	file := t.TempDir() + "/text"
	if err := os.WriteFile(file, []byte(written), 0o600); err != nil {
		t.Fatal(err)
	}
	_, w := start(t, Config{Form: JSON, Stdout: out, Stderr: errs}, "cat "+file+"; echo err >&2; exit 3")
	w.ends(t)
	var got strings.Builder
	if !fdtest.Poll(func() bool { return strings.Count(out.String(), "\n") == 6 && errs.String() != "" }) {
		t.Fatalf("written %q", out)
	}
	for line := range strings.Lines(out.String() + errs.String()) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Slot != 2 || e.PID != w.p.PID() || e.Generation != 3 || e.Level != "info" {
			t.Errorf("%q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, e.Timestamp); err != nil {
			t.Error(err)
		}
		if e.Stream == stderr {
			if e.Message != "err" {
				t.Errorf("stderr %q", e.Message)
			}
			continue
		}
		text := e.Message
		if e.Base64 != "" {
			raw, _ := base64.StdEncoding.DecodeString(e.Base64)
			text = string(raw)
		}
		if len(text) > maxLine {
			t.Errorf("a part of %d bytes", len(text))
		}
		if got.WriteString(text); !e.Partial {
			got.WriteByte('\n')
		}
	}
	if got.String() != written {
		t.Errorf("got %.100q, want %.100q", got.String(), written)
	}
}

// TestStalledSink: while nobody reads the log, the worker waits, and not before it has filled its pipe; nothing grows, and its last
// words can be had all the same. Row C14, row A4.
func TestStalledSink(t *testing.T) {
	out := &sink{}
	out.held.Lock()
	_, w := start(t, Config{Form: Prefix, Stdout: out, Stderr: out}, `i=0; while [ $i -lt 30000 ]; do echo "line $i"; i=$((i+1)); done`)
	if !fdtest.Poll(func() bool { return w.streams[0].hasMore() }) {
		t.Fatal("all was read")
	}
	time.Sleep(50 * time.Millisecond)
	w.mu.Lock()
	held := len(w.streams[0].held)
	w.mu.Unlock()
	if held > maxLine+readSize {
		t.Errorf("%d bytes held", held)
	}
	if words := w.LastWords(time.Millisecond); !strings.HasPrefix(words, "line ") {
		t.Errorf("last words %q", words)
	}
	out.held.Unlock()
	if words := w.ends(t); !strings.HasSuffix(words, "line 29998\nline 29999") || strings.Count(words, "\n") != maxWords-1 {
		t.Errorf("last words %q", words)
	}
	if !fdtest.Poll(func() bool { return strings.HasSuffix(out.String(), "slot  2 | line 29999\n") }) {
		t.Error("the last line is missing")
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if line != fmt.Sprint("slot  2 | line ", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// TestGrandchild: a process that the worker has left behind keeps neither its last words nor the end waiting. Row C14.
func TestGrandchild(t *testing.T) {
	fdtest.NoLeaks(t)
	out := &sink{}
	c, w := start(t, Config{Form: Prefix, Stdout: out, Stderr: out}, "echo last; sleep 60 & exit 1")
	began := time.Now()
	if words := w.ends(t); words != "last" {
		t.Errorf("last words %q", words)
	}
	done := make(chan struct{})
	go func() { c.running.Wait(); close(done) }()
	c.mu.Lock()
	for o := range c.open {
		o.readUntil(time.Now())
	}
	c.mu.Unlock()
	<-done
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
	out.says(t, "slot  2 | last\n")
}

// TestGoesOn: what was read and not written, half a line, last words and descriptors go to another program. Row C14.
func TestGoesOn(t *testing.T) {
	for name, cfg := range map[string]Config{"terminal": {Form: Prefix, Terminal: terminal(t)}, "pipes": {Form: JSON}} {
		t.Run(name, func(t *testing.T) {
			old, now := &sink{}, &sink{}
			cfg.Stdout, cfg.Stderr = old, old
			gate := t.TempDir() + "/gate"
			_, w := start(t, cfg, "echo one; printf tw; while ! test -e "+gate+"; do sleep 0.01; done; echo o; echo three")
			if !fdtest.Poll(func() bool {
				return strings.Contains(old.String(), "one") && strings.HasSuffix(w.LastWords(0), "tw")
			}) {
				t.Fatalf("written %q", old)
			}
			b := reexec.NewBundle("test")
			reexec.Lock.Lock()
			s := w.save(b)
			reexec.Lock.Unlock()
			// The descriptors of the old one go to the new one. It does not read any more.
			for i := range s.Streams {
				fd, err := unix.FcntlInt(uintptr(s.Streams[i].FD), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				s.Streams[i].FD = b.Keep(fd)
			}
			w.readUntil(time.Now())
			w.running.Wait()
			text, err := reexec.Seal(part, s)
			if err != nil {
				t.Fatal(err)
			}

			cfg.Form, cfg.Stdout, cfg.Stderr = Prefix, now, now
			c := New(cfg)
			restored, err := c.RestoreOutput(b)(seat, w.p.PID(), text)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			restored.Resume()
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			w.p.Await()
			if words := restored.LastWords(patience); words != "one\ntwo\nthree" {
				t.Errorf("last words %q", words)
			}
			restored.Close()
			now.says(t, "slot  2 | two\nslot  2 | three\n")
		})
	}
}

// TestOwner: a worker that runs as another user can open its standard error by name, as nginx and PHP do. Row C14.
func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	for name, cfg := range map[string]Config{"terminal": {Form: Prefix, Terminal: terminal(t)}, "pipes": {Form: JSON}} {
		t.Run(name, func(t *testing.T) {
			out := &sink{}
			cfg.Stdout, cfg.Stderr = out, out
			cfg.Owner = &syscall.Credential{Uid: 65534, Gid: 65534}
			_, w := start(t, cfg, "echo a >/dev/stderr; echo b >/proc/self/fd/2; echo c >/dev/stdout")
			if words := w.ends(t); words != "a\nb\nc" && !(cfg.Form == JSON && len(words) == 5) {
				t.Errorf("last words %q", words)
			}
		})
	}
}

// TestWords: the last ten lines, 2 KiB of them, and nothing that a terminal takes for a command.
func TestWords(t *testing.T) {
	var w words
	for i := range 20 {
		w.add(fmt.Appendf(nil, "%d", i))
		w.add([]byte(" \r"))
	}
	if got, want := w.String(), "10\n11\n12\n13\n14\n15\n16\n17\n18\n19"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w = words{}
	w.add([]byte("\x1b[1;31mred\x1b[0m\tand \x1b]0;title\x07b\xffld\x1b(B\a\r"))
	if got, want := w.String(), "red and b?ld"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for range 10 {
		w.add([]byte(strings.Repeat("x", 10000)))
	}
	if n := len(w.String()); n > maxWordBytes || n < maxWordBytes/2 {
		t.Errorf("%d bytes", n)
	}
}

// TestStartFails: when no process could be started nothing is left.
func TestStartFails(t *testing.T) {
	fdtest.NoLeaks(t)
	out := &sink{}
	c := New(Config{Form: Prefix, Stdout: out, Stderr: out, Terminal: terminal(t)})
	o, err := c.NewOutput(seat)
	if err != nil {
		t.Fatal(err)
	}
	o.Close() // no process was started
	c.Close()
	if len(c.open) != 0 {
		t.Error("it is still there")
	}
}
