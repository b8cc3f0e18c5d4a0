package accesslog

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func none(t *testing.T) func(int, error) {
	return func(leftOut int, err error) { t.Errorf("%d lines left out, %v", leftOut, err) }
}

// TestWrite: all lines are there, in order, whole, after Close; and appended to what was.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Open(path, none(t))
	if err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	for writer := range 4 {
		writing.Go(func() {
			for i := range 1000 {
				fmt.Fprintf(w, "%d %d\n", writer, i)
			}
		})
	}
	writing.Wait()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
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
	w, err := Open(path, none(t))
	if err != nil {
		t.Fatal(err)
	}
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

// TestStalledReader: who writes does not wait for a pipe that nobody reads, and hears how much
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
	w, err := Open(path, func(leftOut int, err error) {
		if err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		lost <- leftOut
	})
	if err != nil {
		t.Fatal(err)
	}
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
	if _, err := Open("/no/such/folder/access.log", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
