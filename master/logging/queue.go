package logging

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// maxBehind is how many bytes wait to be written at most; further lines are left out.
	maxBehind = 1 << 20
	// retryDelay is the time between two tries after one has failed.
	retryDelay = time.Second
	// reminder is how often at most a failure is reported again.
	reminder = 10 * time.Second
	// atomicWrite is how much write(2) puts into a pipe as a whole, or not at all (man 7 pipe, PIPE_BUF).
	atomicWrite = 4096
	// fileWrite is how much a file gets at once.
	fileWrite = 64 << 10
)

// FlushTimeout bounds Flush and Close. A write that has been waiting for so long already is not waited for.
const FlushTimeout = time.Second

// Hooks are called by a Queue's goroutine, to report what becomes of it. nil: nothing is reported.
type Hooks struct {
	// LeftOut: so many lines were left out since it was last called. It is called when a line could be
	// written again.
	LeftOut func(lines int)
	// Failed: a write has failed, and is tried again. So far so many lines were left out. It is called for the
	// first failure in a row, and every ten seconds.
	Failed func(lines int, err error)
}

// Queue is a log that never makes its writers wait. One goroutine writes; it ends with Close, or when a write
// that hangs then is over.
type Queue struct {
	out   output
	chunk int           // bytes at once
	delay time.Duration // how long lines are collected, so that one write takes many

	wake    chan struct{} // of capacity 1: there are lines
	noDelay chan struct{} // of capacity 1: do not collect
	waiters chan waiter
	closed  chan struct{}
	ended   chan struct{}
	once    sync.Once

	mu       sync.Mutex
	hooks    Hooks
	rest     []byte    // lines that are not written; what is being written is in front
	leftOut  int       // lines, since that was reported
	total    uint64    // lines left out
	began    time.Time // of the write in progress; zero: there is none
	failing  bool
	reopen   bool
	progress chan struct{} // closed and replaced after each write

	// The fields below belong to the goroutine.
	retry      <-chan time.Time // after a failure; nil: writing works
	reportedAt time.Time        // when the failure was
}

// output is where a Queue writes. It belongs to the queue's goroutine.
type output interface {
	io.Writer
	reopen() error
	close()
}

// waiter is a call of Pass: lines whose writer waits.
type waiter struct {
	lines []byte
	done  chan struct{}
}

// NewQueue makes a queue in front of w, which it borrows until Close has returned, or for ever if w hangs then.
func NewQueue(w io.Writer) *Queue {
	chunk := atomicWrite
	if file, ok := w.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			chunk = fileWrite
		}
	}
	return newQueue(stream{w}, chunk, 0)
}

func newQueue(out output, chunk int, delay time.Duration) *Queue {
	q := &Queue{out: out, chunk: chunk, delay: delay,
		wake: make(chan struct{}, 1), noDelay: make(chan struct{}, 1), waiters: make(chan waiter),
		closed: make(chan struct{}), ended: make(chan struct{}), progress: make(chan struct{})}
	go q.run()
	return q
}

// SetHooks sets what is called from now on.
func (q *Queue) SetHooks(hooks Hooks) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hooks = hooks
}

// Write takes whole lines. It does not wait, and does not fail.
func (q *Queue) Write(lines []byte) (int, error) {
	q.mu.Lock()
	if len(q.rest)+len(lines) > maxBehind {
		q.leaveOut(lines)
	} else {
		q.rest = append(q.rest, lines...)
	}
	q.mu.Unlock()
	nudge(q.wake)
	return len(lines), nil
}

// Pass writes lines of somebody who can wait, and returns when they are written, or cannot be: then they are left out. The lines
// of Write are written before.
func (q *Queue) Pass(lines []byte) {
	g := waiter{lines, make(chan struct{})}
	select {
	case q.waiters <- g:
		select {
		case <-g.done:
		case <-q.ended:
		}
	case <-q.ended:
		q.mu.Lock()
		q.leaveOut(lines)
		q.mu.Unlock()
	}
}

// Reopen opens the file by its name again before the next lines are written: somebody has moved it away.
func (q *Queue) Reopen() {
	q.mu.Lock()
	q.reopen = true
	q.mu.Unlock()
	nudge(q.noDelay)
	nudge(q.wake)
}

// LeftOut returns how many lines were left out since the start.
func (q *Queue) LeftOut() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}

// Rest is what a queue leaves to another one that goes on with the same file.
type Rest struct {
	Lines   []byte // that are not written
	LeftOut int    // lines whose loss was not reported
	Total   uint64 // lines that were left out since the start
}

// Rest returns what is left. What is being written is in it: a pipe has not got it, or else write(2) would have
// returned.
func (q *Queue) Rest() Rest {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Rest{bytes.Clone(q.rest), q.leftOut, q.total}
}

// Resume takes over what another queue had left. Call it before anything is written.
func (q *Queue) Resume(r Rest) {
	q.mu.Lock()
	q.leftOut += r.LeftOut
	q.total += r.Total
	q.mu.Unlock()
	q.Write(r.Lines)
}

// Flush returns when what was taken is written, when it cannot be, or after FlushTimeout.
func (q *Queue) Flush() { q.await(false) }

// Close writes what was taken, as Flush does, and ends the queue. What is written afterwards is left out.
func (q *Queue) Close() {
	q.once.Do(func() { close(q.closed) })
	q.await(true)
}

// await waits until there is no rest, or until the goroutine has ended.
func (q *Queue) await(end bool) {
	timeout := time.NewTimer(FlushTimeout)
	defer timeout.Stop()
	nudge(q.noDelay)
	nudge(q.wake)
	for {
		q.mu.Lock()
		progress := q.progress
		written := len(q.rest) == 0 && q.began.IsZero() && !end
		hopeless := q.failing || !q.began.IsZero() && time.Since(q.began) > FlushTimeout
		q.mu.Unlock()
		if written || hopeless && !end {
			return
		}
		if hopeless {
			timeout.Reset(0)
			progress = nil
		}
		select {
		case <-progress:
		case <-q.ended:
			return
		case <-timeout.C:
			return
		}
	}
}

// leaveOut counts lines that are not written. q.mu is locked.
func (q *Queue) leaveOut(lines []byte) {
	n := bytes.Count(lines, []byte("\n"))
	if len(lines) > 0 && lines[len(lines)-1] != '\n' {
		n++
	}
	q.leftOut += n
	q.total += uint64(n)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has been already
	}
}

func (q *Queue) run() {
	defer close(q.ended)
	defer q.out.close()
	for {
		wake := q.wake
		if q.retry != nil {
			wake = nil
		}
		select {
		case <-wake:
			q.collect()
			q.writeRest()
		case <-q.retry:
			q.writeRest()
		case g := <-q.waiters:
			q.serve(g)
		case <-q.closed:
			q.writeRest()
			return
		}
	}
}

// collect waits, so that one write takes many lines.
func (q *Queue) collect() {
	if q.delay <= 0 {
		return
	}
	select {
	case <-time.After(q.delay):
	case <-q.noDelay:
	case <-q.closed:
	}
}

// serve writes the lines of a waiter, after all others; while writing fails it leaves them out.
func (q *Queue) serve(g waiter) {
	defer close(g.done)
	if q.retry == nil {
		q.writeRest()
	}
	for left := g.lines; len(left) > 0; {
		chunk := q.cut(left)
		n, err := 0, error(nil)
		if q.retry == nil {
			n, err = q.write(chunk)
			q.wrote(err)
		}
		if n < len(chunk) {
			q.mu.Lock()
			q.leaveOut(left[n:])
			q.mu.Unlock()
			return
		}
		left = left[n:]
	}
}

// writeRest writes all that was taken, unless that fails.
func (q *Queue) writeRest() {
	q.mu.Lock()
	reopen := q.reopen
	q.reopen = false
	q.mu.Unlock()
	if reopen {
		if err := q.out.reopen(); err != nil {
			q.reportFailed(err) // and goes on with the file that it has
		}
	}
	for {
		q.mu.Lock()
		chunk := q.cut(q.rest) // Write only appends, so that it stays as it is
		q.mu.Unlock()
		if len(chunk) == 0 {
			return
		}
		n, err := q.write(chunk)
		q.mu.Lock()
		if q.rest = q.rest[n:]; len(q.rest) == 0 {
			q.rest = nil
		}
		q.mu.Unlock()
		if q.wrote(err); err != nil {
			return
		}
	}
}

// cut returns the first lines, as many as are written at once; a line that is longer alone.
func (q *Queue) cut(lines []byte) []byte {
	if len(lines) <= q.chunk {
		return lines
	}
	if end := bytes.LastIndexByte(lines[:q.chunk], '\n'); end >= 0 {
		return lines[:end+1]
	}
	if end := bytes.IndexByte(lines, '\n'); end >= 0 {
		return lines[:end+1]
	}
	return lines
}

// write is one write(2), and notes how long it takes.
func (q *Queue) write(chunk []byte) (int, error) {
	q.mu.Lock()
	q.began = time.Now()
	q.mu.Unlock()
	n, err := q.out.Write(chunk)
	q.mu.Lock()
	q.began = time.Time{}
	q.mu.Unlock()
	return n, err
}

// wrote notes whether writing works, and reports it.
func (q *Queue) wrote(err error) {
	q.retry = nil
	if err != nil {
		q.retry = time.After(retryDelay)
	}
	q.mu.Lock()
	close(q.progress)
	q.progress = make(chan struct{})
	q.failing = err != nil
	leftOut, hook := q.leftOut, q.hooks.LeftOut
	if err == nil && hook != nil {
		q.leftOut = 0
	}
	q.mu.Unlock()
	switch {
	case err == nil:
		q.reportedAt = time.Time{}
		if leftOut > 0 && hook != nil {
			hook(leftOut)
		}
	case q.reportedAt.IsZero() || time.Since(q.reportedAt) >= reminder:
		q.reportedAt = time.Now()
		q.reportFailed(err)
	}
}

func (q *Queue) reportFailed(err error) {
	q.mu.Lock()
	leftOut, hook := q.leftOut, q.hooks.Failed
	q.mu.Unlock()
	if hook != nil {
		hook(leftOut, err)
	}
}

// stream is an output that others own.
type stream struct{ io.Writer }

func (stream) reopen() error { return nil }
func (stream) close()        {}
