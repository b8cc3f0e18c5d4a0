package kernelroute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal is what has happened, with the seconds since the test began.
type journal struct {
	began time.Time

	mu    sync.Mutex
	lines []string
}

func newJournal() *journal { return &journal{began: time.Now()} }

func (j *journal) note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%g ", time.Since(j.began).Seconds())+fmt.Sprintf(format, args...))
}

// ended tells whether something was noted that ends so.
func (j *journal) ended(with string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.lines, func(line string) bool { return strings.HasSuffix(line, with) })
}

// expect compares with what is there once nothing moves any more, and begins a new page.
func (j *journal) expect(t *testing.T, step string, want ...string) {
	t.Helper()
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.lines, want) {
		t.Errorf("%s:\n\tis   %q\n\twant %q", step, j.lines, want)
	}
	j.lines = nil
}

// loop is one that takes a while to end when it is told to, and notes its beginning and its end.
func (j *journal) loop(name string, toEnd time.Duration) acceptLoop {
	return func(ctx context.Context, _ *os.File) error {
		j.note("%s begins", name)
		<-ctx.Done()
		time.Sleep(toEnd)
		j.note("%s ends", name)
		return nil
	}
}

// acceptorsAtTest are some acceptors in simulated time. All loops have ended when the test does.
func acceptorsAtTest(t *testing.T, f func(j *journal, s *sharedAcceptors)) {
	synctest.Test(t, func(t *testing.T) {
		s, j := newSharedAcceptors(), newJournal()
		s.failed = func(err error) { j.note("failed: %v", err) }
		f(j, &s)
		s.stopAll()
		s.running.Wait()
		if len(s.current) > 0 {
			t.Errorf("%d loops after the last was stopped", len(s.current))
		}
	})
}

// TestAcceptorInPlaceOfAnother: the new loop begins when the old one has ended. One that was replaced before it
// began never does.
func TestAcceptorInPlaceOfAnother(t *testing.T) {
	acceptorsAtTest(t, func(j *journal, s *sharedAcceptors) {
		ln, other := new(os.File), new(os.File)
		s.start(ln, j.loop("first", 5*time.Second))
		s.start(other, j.loop("beside it", 0))
		synctest.Wait()
		slices.Sort(j.lines) // they began at the same time
		j.expect(t, "both run", "0 beside it begins", "0 first begins")

		s.start(ln, j.loop("second", 0))
		s.start(ln, j.loop("third", 0))
		j.expect(t, "the first one is not at its end yet")
		time.Sleep(10 * time.Second)
		j.expect(t, "now it is", "5 first ends", "5 third begins")

		s.stop(ln)
		j.expect(t, "one is stopped", "10 third ends")
		s.stop(ln)
		j.expect(t, "again")
		s.stopAll()
		j.expect(t, "all are stopped", "10 beside it ends")
	})
}

// TestAcceptorAfter: a loop that is to begin later begins then, unless it was stopped or replaced until then.
func TestAcceptorAfter(t *testing.T) {
	acceptorsAtTest(t, func(j *journal, s *sharedAcceptors) {
		ln := new(os.File)
		s.start(ln, j.loop("late", 0).after(queueTime))
		time.Sleep(queueTime - 1)
		j.expect(t, "not yet")
		time.Sleep(time.Nanosecond)
		j.expect(t, "now", "0.1 late begins")
		s.stop(ln)
		j.expect(t, "stopped", "0.1 late ends")

		s.start(ln, j.loop("too late", 0).after(queueTime))
		time.Sleep(queueTime / 2)
		s.start(ln, j.loop("at once", 0))
		time.Sleep(time.Hour)
		j.expect(t, "replaced before its time", "0.15 at once begins")
		s.stop(ln)
		j.expect(t, "that one is stopped", "3600.15 at once ends")

		s.start(ln, j.loop("never", 0).after(queueTime))
		time.Sleep(queueTime / 2)
		s.stop(ln)
		time.Sleep(time.Hour)
		j.expect(t, "stopped before its time")
	})
}

// TestAcceptorRestart: after a failure the same loop begins anew, with all its delay. Where there is none, nothing does.
func TestAcceptorRestart(t *testing.T) {
	acceptorsAtTest(t, func(j *journal, s *sharedAcceptors) {
		ln := new(os.File)
		s.restart(ln)
		j.expect(t, "there is none")

		broken := errors.New("shut down")
		loop := acceptLoop(func(ctx context.Context, listener *os.File) error {
			if j.note("begins"); listener != ln {
				j.note("with another listener")
			}
			return broken
		})
		s.start(ln, loop.after(time.Second))
		time.Sleep(time.Second)
		j.expect(t, "it fails", "1 begins", "1 failed: shut down")
		s.restart(ln)
		time.Sleep(time.Second)
		j.expect(t, "and again", "2 begins", "2 failed: shut down")
		s.stop(ln)
		s.restart(ln)
		time.Sleep(time.Second)
		j.expect(t, "it was stopped")
	})
}

// TestAcceptorFailsAtItsEnd: why a loop fails that was stopped interests nobody: its listener may be closed.
func TestAcceptorFailsAtItsEnd(t *testing.T) {
	acceptorsAtTest(t, func(j *journal, s *sharedAcceptors) {
		ln := new(os.File)
		s.start(ln, func(ctx context.Context, _ *os.File) error {
			<-ctx.Done()
			return os.ErrClosed
		})
		synctest.Wait()
		s.stop(ln)
		j.expect(t, "stopped")
	})
}
