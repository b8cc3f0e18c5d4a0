package output

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
)

const (
	// maxLine is how much of a line is held at most; what is longer comes in parts. As in Docker's logs.
	maxLine = 16 << 10
	// readSize is how much is read at once.
	readSize = 8 << 10
	// passSize is about how much is passed to the sink at once.
	passSize = 16 << 10
)

// stream is one file that a worker writes to.
type stream struct {
	output *Output
	name   string
	sink   Sink
	file   *os.File

	// Changed by run, with the output's mu and reexec.Lock held, since a bundle must find what the kernel does not
	// have any more.
	held []byte // bytes that were read, and are not written on yet
}

// run reads until all holders of the other end have closed it, or the deadline.
func (s *stream) run() {
	defer s.output.ended(s)
	for s.pass(false); s.read(); s.pass(false) {
	}
	s.pass(true)
}

// read waits until something is there, and tells whether there may be more.
func (s *stream) read() bool {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return false
	}
	var buffer [readSize]byte
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		reexec.Lock.RLock()
		defer reexec.Lock.RUnlock()
		s.output.mu.Lock()
		defer s.output.mu.Unlock()
		var err error
		for n, err = unix.Read(int(fd), buffer[:]); err == unix.EINTR; {
			n, err = unix.Read(int(fd), buffer[:])
		}
		if err != nil { // EIO: no process has the terminal open any more
			n = 0
		}
		s.held = append(s.held, buffer[:n]...)
		return err != unix.EAGAIN
	})
	return err == nil && n > 0
}

// hasMore tells whether something is there that was not read.
func (s *stream) hasMore() (more bool) {
	sock.Control(s.file, func(fd int) error {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		more = n == 1 && poll[0].Revents&unix.POLLIN != 0
		return err
	})
	return more
}

// pass writes whole lines on; at the end, or if it is too long, also what is part of one.
func (s *stream) pass(end bool) {
	for {
		text, used := s.format(end)
		if used == 0 {
			return
		}
		s.sink.Pass(text) // not under a lock: it may wait for long
		s.written(used)
	}
}

// written drops what was written on, and keeps the last words.
func (s *stream) written(used int) {
	reexec.Lock.RLock()
	defer reexec.Lock.RUnlock()
	s.output.mu.Lock()
	defer s.output.mu.Unlock()
	for rest := s.held[:used]; len(rest) > 0; {
		line, n, _ := cut(rest, true)
		s.output.words.add(line)
		rest = rest[n:]
	}
	s.held = append([]byte(nil), s.held[used:]...)
}

// eachHeld calls f with the lines that were read. The output's mu is locked.
func (s *stream) eachHeld(f func(line []byte)) {
	for rest := s.held; len(rest) > 0; {
		line, n, _ := cut(rest, true)
		f(line)
		rest = rest[n:]
	}
}

// format returns lines as they are to be written, and of how many bytes they were made.
func (s *stream) format(end bool) (text []byte, used int) {
	for len(text) < passSize {
		line, n, whole := cut(s.held[used:], end)
		if n == 0 {
			break
		}
		switch s.output.collector.cfg.Form {
		case JSON:
			text = s.appendJSON(text, line, !whole)
		case Prefix:
			text = append(append(append(text, s.output.prefix...), line...), '\n')
		default:
			text = append(append(text, line...), '\n')
		}
		used += n
	}
	return text, used
}

// cut returns the first line, how many bytes it takes with its end, and whether it is whole. n is 0 if none is to be
// written yet.
func cut(text []byte, end bool) (line []byte, n int, whole bool) {
	if i := bytes.IndexByte(text[:min(len(text), maxLine)], '\n'); i >= 0 {
		return text[:i], i + 1, true
	}
	switch {
	case len(text) >= maxLine:
		n = maxLine
		for back := 1; back < utf8.UTFMax; back++ { // not within a character
			if utf8.RuneStart(text[n-back]) {
				if !utf8.FullRune(text[n-back : n]) {
					n -= back
				}
				break
			}
		}
		return text[:n], n, false
	case end:
		return text, len(text), true
	}
	return nil, 0, false
}

// entry is a line in JSON. The first keys are those of the master's own lines (hclog).
type entry struct {
	Level      string `json:"@level"`
	Message    string `json:"@message"`
	Module     string `json:"@module"`
	Timestamp  string `json:"@timestamp"`
	Slot       int    `json:"slot"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
	Stream     string `json:"stream"`
	Partial    bool   `json:"partial,omitempty"` // the line goes on in the next entry
	Base64     string `json:"base64,omitempty"`  // the line, if it is not UTF-8
}

const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

func (s *stream) appendJSON(to, line []byte, partial bool) []byte {
	e := entry{
		Level: "info", Message: string(line), Module: "handfast.worker", Timestamp: time.Now().Format(timeFormat),
		Slot: s.output.seat.Slot, PID: s.output.pid, Generation: s.output.seat.Generation, Stream: s.name, Partial: partial,
	}
	if !utf8.Valid(line) {
		e.Base64 = base64.StdEncoding.EncodeToString(line)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.Encode(e) // it has nothing that cannot be encoded; ends in a newline
	return append(to, text.Bytes()...)
}
