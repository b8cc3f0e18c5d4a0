package nthcall

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Tracer makes calls of a process fail.
type Tracer struct {
	t      *testing.T
	in     io.WriteCloser
	obeyed chan struct{}
	ended  chan struct{}
	mu     sync.Mutex
	hits   []Hit
}

// order is what a tracer is told, and what it says when it has done that.
type order struct {
	Rule *Rule // nil: none
}

// Attach begins to trace a process, until the test ends. The test is skipped where that is not allowed. This test binary calls
// Main first thing.
func Attach(t *testing.T, pid int) *Tracer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, marker, strconv.Itoa(pid))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr := &Tracer{t: t, in: in, obeyed: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(tr.ended)
		tr.read(out)
		cmd.Wait()
	}()
	t.Cleanup(tr.Detach)
	if !tr.await() {
		if os.Getenv("CI") == "" {
			t.Skip("processes cannot be traced here")
		}
		t.Fatal("the process cannot be traced")
	}
	return tr
}

// read hears what the tracer says until it ends.
func (tr *Tracer) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var hit Hit
		if strings.HasPrefix(lines.Text(), `{"Rule"`) {
			tr.obeyed <- struct{}{}
		} else if json.Unmarshal(lines.Bytes(), &hit) == nil {
			tr.mu.Lock()
			tr.hits = append(tr.hits, hit)
			tr.mu.Unlock()
		}
	}
}

// await waits until the tracer has done what it was told, and tells whether it lives.
func (tr *Tracer) await() bool {
	select {
	case <-tr.obeyed:
		return true
	case <-tr.ended:
		return false
	}
}

// Fail has calls fail from now on.
func (tr *Tracer) Fail(r Rule) { tr.tell(&r) }

// Stop has none fail any more, and returns those that have failed since Fail.
func (tr *Tracer) Stop() (hits []Hit) {
	tr.tell(nil)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	hits, tr.hits = tr.hits, nil
	return hits
}

func (tr *Tracer) tell(r *Rule) {
	line, err := json.Marshal(order{r})
	if err != nil {
		tr.t.Fatal(err)
	}
	fmt.Fprintf(tr.in, "%s\n", line) // it may have ended, with the process
	tr.await()
}

// Detach lets go of the process.
func (tr *Tracer) Detach() {
	tr.in.Close()
	<-tr.ended
}
