package logging

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// open opens a file of which no line is to be left out.
func open(t *testing.T, path string) *Queue {
	t.Helper()
	q, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	q.SetHooks(Hooks{
		LeftOut: func(lines int) { t.Errorf("%d lines left out", lines) },
		Failed:  func(_ int, err error) { t.Error(err) },
	})
	return q
}

// TestWrite: all lines are there, in order, whole, after Close; and appended to what was.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := open(t, path)
	var writing sync.WaitGroup
	for writer := range 4 {
		writing.Go(func() {
			for i := range 1000 {
				fmt.Fprintf(w, "%d %d\n", writer, i)
			}
		})
	}
	writing.Wait()
	w.Close()
	text, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	next := [4]int{}
	for _, line := range lines[1:] {
		var writer, i int
		if n, _ := fmt.Sscanf(line, "%d %d", &writer, &i); n != 2 || next[writer] != i {
			t.Fatalf("line %q, want number %d", line, next[writer])
		}
		next[writer]++
	}
	if lines[0] != "before" || next != [4]int{1000, 1000, 1000, 1000} {
		t.Errorf("first %q, then %v lines", lines[0], next)
	}
}

// TestReopen: after the file was moved, lines go to a new one.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	w := open(t, path)
	fmt.Fprintln(w, "old")
	for size := int64(0); size == 0; {
		if info, err := os.Stat(path); err == nil {
			size = info.Size()
		}
		time.Sleep(time.Millisecond)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	w.Reopen()
	fmt.Fprintln(w, "new")
	w.Close()
	old, _ := os.ReadFile(path + ".1")
	now, _ := os.ReadFile(path)
	if string(old) != "old\n" || string(now) != "new\n" {
		t.Errorf("moved: %q, new: %q", old, now)
	}
}

// TestStalledReader: a writer does not wait for a pipe that nobody reads, and hears how much
// was left out when somebody does.
func TestStalledReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	lost := make(chan int, 1000)
	w, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	w.SetHooks(Hooks{LeftOut: func(lines int) { lost <- lines }, Failed: func(_ int, err error) { t.Error(err) }})
	line, written := strings.Repeat("x", 1023)+"\n", 0
	for range 5 * maxBehind / len(line) { // much more than the pipe and the buffer hold
		w.Write([]byte(line))
		written++
	}
	read := make(chan int)
	go func() {
		n := 0
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			if lines.Text()+"\n" != line {
				break
			}
			n++
		}
		read <- n
	}()
	leftOut := <-lost
	w.Close()
	for len(lost) > 0 {
		leftOut += <-lost
	}
	reader.WriteString("end\n")
	if n := <-read; n+leftOut != written || leftOut == 0 {
		t.Errorf("wrote %d lines, %d were read and %d left out", written, n, leftOut)
	}
}

// TestOpenFails: a path that cannot be.
func TestOpenFails(t *testing.T) {
	if _, err := Open("/no/such/folder/access.log"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestPipeWithoutReader: opening it does not wait, what is written waits for a reader, and the hook for failures hears why.
// Row A4: an access log to a FIFO without a reader.
func TestPipeWithoutReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	q, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 10)
	q.SetHooks(Hooks{Failed: func(_ int, err error) { failed <- err }})
	fmt.Fprintln(q, "early")
	if err := <-failed; !errors.Is(err, ErrNoReader) {
		t.Errorf("told %v, want ErrNoReader", err)
	}
	reader, err := os.Open(path) // when the queue opens it, too
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	text := make([]byte, len("early\n"))
	if _, err := io.ReadFull(reader, text); err != nil || string(text) != "early\n" {
		t.Errorf("read %q, %v", text, err)
	}
	q.Close()
	if q.LeftOut() != 0 {
		t.Errorf("%d lines left out", q.LeftOut())
	}
}

// scripted is an output whose writes do what the test says: wait, fail, write a part.
type scripted struct {
	mu      sync.Mutex
	text    bytes.Buffer
	err     error
	accept  int // bytes, while there is an error
	blocked chan struct{}
}

func (s *scripted) Write(p []byte) (int, error) {
	s.mu.Lock()
	blocked := s.blocked
	s.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		n := min(s.accept, len(p))
		s.accept -= n
		s.text.Write(p[:n])
		return n, s.err
	}
	return s.text.Write(p)
}

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *scripted) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestFullDisk: what is taken while writing fails is written when it works again, whole, and what there was no room
// for is counted and told then. Row A4: on a full disk left_out stayed 0.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &scripted{err: unix.ENOSPC, accept: 3}
		q := NewQueue(out)
		var events []string
		q.SetHooks(Hooks{
			LeftOut: func(lines int) { events = append(events, fmt.Sprint("left out ", lines)) },
			Failed:  func(lines int, err error) { events = append(events, fmt.Sprint(err, " ", lines)) },
		})
		fmt.Fprintln(q, "first")
		time.Sleep(15 * time.Second)
		big := strings.Repeat("x", maxBehind/2-1) + "\n"
		for range 3 { // of which two do not fit
			io.WriteString(q, big)
		}
		time.Sleep(6 * time.Second)
		out.set(func() { out.err = nil })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if want := []string{"no space left on device 0", "no space left on device 0", "no space left on device 2", "left out 2"}; !slices.Equal(events, want) {
			t.Errorf("told %q, want %q", events, want)
		}
		if got := out.String(); got != "first\n"+big {
			t.Errorf("written %d bytes, want %d", len(got), 6+len(big))
		}
		q.Close()
	})
}

// TestStuck: with an output that hangs nothing waits long, and nothing more than once. Row A4.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &scripted{blocked: make(chan struct{})}
		q := NewQueue(out)
		fmt.Fprintln(q, "hangs")
		synctest.Wait()
		took := func(f func()) time.Duration { began := time.Now(); f(); return time.Since(began) }
		if d := took(func() { fmt.Fprintln(q, "waits") }); d != 0 {
			t.Errorf("Write took %v", d)
		}
		if d := took(q.Flush); d != FlushTimeout {
			t.Errorf("Flush took %v, want %v", d, FlushTimeout)
		}
		time.Sleep(time.Millisecond)
		if d := took(q.Flush); d != 0 {
			t.Errorf("another Flush took %v", d)
		}
		if rest := q.Rest().Lines; string(rest) != "hangs\nwaits\n" {
			t.Errorf("rest %q", rest)
		}
		if d := took(q.Close); d > FlushTimeout {
			t.Errorf("Close took %v", d)
		}
		close(out.blocked)
		synctest.Wait()
		if got := out.String(); got != "hangs\nwaits\n" {
			t.Errorf("written %q", got)
		}
	})
}

// TestPass: a waiter waits, and the log's own lines pass it; when writing fails it does not wait.
func TestPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &scripted{blocked: make(chan struct{})}
		q := NewQueue(out)
		fmt.Fprintln(q, "hangs")
		synctest.Wait()
		passed := false
		go func() { q.Pass([]byte("guest\n")); passed = true }()
		synctest.Wait()
		fmt.Fprintln(q, "own")
		if synctest.Wait(); passed {
			t.Error("the guest did not wait")
		}
		close(out.blocked)
		out.set(func() { out.blocked = nil })
		if synctest.Wait(); !passed || out.String() != "hangs\nown\nguest\n" {
			t.Errorf("written %q, guest passed: %t", out.String(), passed)
		}
		out.set(func() { out.err = unix.EPIPE })
		q.Pass([]byte("one\ntwo\n"))
		q.Pass([]byte("three"))
		if q.LeftOut() != 3 {
			t.Errorf("%d lines left out, want 3", q.LeftOut())
		}
		q.Close()
		q.Pass([]byte("late\n")) // must return
	})
}

// TestResume: another queue goes on.
func TestResume(t *testing.T) {
	out := &scripted{}
	q := NewQueue(out)
	told := 0
	q.SetHooks(Hooks{LeftOut: func(lines int) { told = lines }})
	q.Resume(Rest{Lines: []byte("old\n"), LeftOut: 7, Total: 9})
	fmt.Fprintln(q, "new")
	q.Close()
	if out.String() != "old\nnew\n" || told != 7 || q.LeftOut() != 9 {
		t.Errorf("written %q, %d left out were told, of %d", out.String(), told, q.LeftOut())
	}
}
