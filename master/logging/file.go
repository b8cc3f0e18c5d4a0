package logging

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fileDelay is how long lines for a file are collected.
const fileDelay = 100 * time.Millisecond

// ErrNoReader: the file is a FIFO, and no process reads it. Lines wait for one.
var ErrNoReader = errors.New("nobody reads this pipe yet; lines wait for a reader")

// Open makes a Queue in front of a file, which is made if it is not there, and appended to; "-" is standard
// output. That a FIFO has no reader is no error: it is opened as soon as it has one.
func Open(path string) (*Queue, error) {
	if path == "-" {
		return newQueue(stream{os.Stdout}, atomicWrite, fileDelay), nil
	}
	f := &file{path: path}
	if err := f.reopen(); err != nil && !errors.Is(err, ErrNoReader) {
		return nil, err
	}
	return newQueue(f, f.chunk(), fileDelay), nil
}

// file is an output that has a name.
type file struct {
	path string
	file *os.File // nil: a FIFO that nobody reads
}

// reopen keeps what is open if that fails.
func (f *file) reopen() error {
	// Without O_NONBLOCK open(2) waits for the reader of a FIFO. To other files it means nothing.
	opened, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
	switch {
	case errors.Is(err, unix.ENXIO) && f.isFIFO():
		return fmt.Errorf("%s: %w", f.path, ErrNoReader)
	case err != nil:
		return fmt.Errorf("logging: %w", err)
	}
	f.close()
	f.file = opened
	return nil
}

func (f *file) isFIFO() bool {
	info, err := os.Stat(f.path)
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// chunk is how much it gets at once.
func (f *file) chunk() int {
	if f.file == nil {
		return atomicWrite
	}
	if info, err := f.file.Stat(); err == nil && info.Mode().IsRegular() {
		return fileWrite
	}
	return atomicWrite
}

// Write opens the file before, if it has not been.
func (f *file) Write(lines []byte) (int, error) {
	if f.file == nil {
		if err := f.reopen(); err != nil {
			return 0, err
		}
	}
	n, err := f.file.Write(lines)
	if errors.Is(err, syscall.EPIPE) {
		err = fmt.Errorf("%s: %w", f.path, ErrNoReader)
	}
	return n, err
}

func (f *file) close() {
	if f.file != nil {
		f.file.Close()
	}
}
