// Package accesslog writes lines to a file without making those wait who write them: a disk
// that is slow, or a reader of a pipe that has stopped, must not hold up connections.
package accesslog

import (
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// maxBehind is how many bytes wait to be written at most; further lines are left out.
	maxBehind = 1 << 20
	// delay is how long lines are collected, so that one write takes many.
	delay = 100 * time.Millisecond
	// closeTimeout bounds how long Close waits for the last lines to be written.
	closeTimeout = 2 * time.Second
)

// Writer is an open file. One goroutine runs for it; it ends with Close, or when a write
// that hangs then is over.
type Writer struct {
	path   string
	failed func(leftOut int, err error)
	wake   chan struct{} // of capacity 1
	closed chan struct{}
	ended  chan struct{}
	once   sync.Once

	flushes chan chan struct{}

	mu      sync.Mutex
	buffer  []byte
	leftOut int
	reopen  bool

	file  *os.File // belongs to the goroutine
	spare []byte
}

// Open opens a file to append to, or makes it; "-" is standard output. Failed is called with
// the number of lines that were left out, and with what went wrong when writing or
// opening again.
func Open(path string, failed func(leftOut int, err error)) (*Writer, error) {
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, failed: failed, file: file,
		wake: make(chan struct{}, 1), closed: make(chan struct{}), ended: make(chan struct{}), flushes: make(chan chan struct{})}
	go w.run()
	return w, nil
}

func open(path string) (*os.File, error) {
	if path == "-" {
		return os.Stdout, nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("accesslog: %w", err)
	}
	return file, nil
}

// Write takes a line. It does not wait, and does not fail.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	if len(w.buffer)+len(line) > maxBehind {
		w.leftOut++
	} else {
		w.buffer = append(w.buffer, line...)
	}
	w.mu.Unlock()
	w.nudge()
	return len(line), nil
}

// Reopen opens the file by its name again before the next lines are written: somebody has
// moved it away.
func (w *Writer) Reopen() {
	w.mu.Lock()
	w.reopen = true
	w.mu.Unlock()
	w.nudge()
}

func (w *Writer) nudge() {
	select {
	case w.wake <- struct{}{}:
	default: // it will wake anyway
	}
}

// Flush returns when what was taken is written, or after closeTimeout.
func (w *Writer) Flush() {
	done := make(chan struct{})
	select {
	case w.flushes <- done:
	case <-w.ended:
		return
	case <-time.After(closeTimeout):
		return
	}
	select {
	case <-done:
	case <-time.After(closeTimeout):
	}
}

// Close writes what was taken.
func (w *Writer) Close() error {
	w.once.Do(func() { close(w.closed) })
	select {
	case <-w.ended:
		return nil
	case <-time.After(closeTimeout):
		return fmt.Errorf("accesslog: %s was not written within %v", w.path, closeTimeout)
	}
}

func (w *Writer) run() {
	defer close(w.ended)
	for {
		select {
		case <-w.wake:
			var done chan struct{}
			select {
			case <-time.After(delay):
			case done = <-w.flushes:
			case <-w.closed:
			}
			w.flush()
			if done != nil {
				close(done)
			}
		case done := <-w.flushes:
			w.flush()
			close(done)
		case <-w.closed:
			w.flush()
			if w.file != os.Stdout {
				w.file.Close()
			}
			return
		}
	}
}

func (w *Writer) flush() {
	w.mu.Lock()
	lines, leftOut, again := w.buffer, w.leftOut, w.reopen
	w.buffer, w.leftOut, w.reopen = w.spare[:0], 0, false
	w.mu.Unlock()
	var err error
	if again && w.path != "-" {
		var file *os.File
		if file, err = open(w.path); err == nil {
			w.file.Close()
			w.file = file
		}
	}
	if len(lines) > 0 {
		if _, writeErr := w.file.Write(lines); writeErr != nil {
			err = writeErr
		}
	}
	w.spare = lines
	if leftOut > 0 || err != nil {
		w.failed(leftOut, err)
	}
}
