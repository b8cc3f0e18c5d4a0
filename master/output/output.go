package output

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// Names of what workers print, in JSON.
const (
	stdout = "stdout"
	stderr = "stderr"
)

// Output is that of one worker: a supervisor.Output.
type Output struct {
	collector *Collector
	seat      supervisor.Seat
	pid       int
	prefix    string // of a line in form Prefix
	streams   []*stream
	theirs    [2]*os.File // standard output and error; the first may be ours
	running   sync.WaitGroup

	mu    sync.Mutex // guards words, and what the streams hold
	words words
}

// openFiles makes what the worker gets.
func (o *Output) openFiles() (err error) {
	cfg := &o.collector.cfg
	if o.theirs[1], err = o.newStream(stderr, cfg.Stderr); err != nil {
		return err
	}
	switch {
	case cfg.InheritStdout:
		o.theirs[0] = os.Stdout
	case cfg.Stdout == cfg.Stderr && cfg.Form != JSON:
		o.theirs[0] = o.theirs[1]
	default:
		o.theirs[0], err = o.newStream(stdout, cfg.Stdout)
	}
	return err
}

// newStream returns the worker's end of a new one, which o owns.
func (o *Output) newStream(name string, sink Sink) (theirs *os.File, err error) {
	var ours *os.File
	if o.collector.cfg.Terminal != nil {
		ours, theirs, err = openTerminal()
	}
	if ours == nil { // also where there are no terminals: no /dev/ptmx in a container, or all are in use
		ours, theirs, err = os.Pipe()
	}
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	if err := sock.Polled(ours); err != nil {
		ours.Close()
		theirs.Close()
		return nil, fmt.Errorf("output: %w", err)
	}
	o.streams = append(o.streams, &stream{output: o, name: name, sink: sink, file: ours})
	if c := o.collector.cfg.Owner; c != nil {
		sock.Control(theirs, func(fd int) error { return unix.Fchown(fd, int(c.Uid), int(c.Gid)) }) // else it cannot open it by name
	}
	o.resize()
	return theirs, nil
}

// Files implements supervisor.Output.
func (o *Output) Files() (stdout, stderr *os.File) { return o.theirs[0], o.theirs[1] }

// Started begins to read.
func (o *Output) Started(pid int) {
	o.pid = pid
	o.closeTheirs()
	o.Resume()
}

// Resume begins to read.
func (o *Output) Resume() {
	for _, s := range o.streams {
		o.collector.running.Add(1)
		o.running.Add(1)
		go s.run()
	}
}

// ended closes a stream that has been read to its end.
func (o *Output) ended(s *stream) {
	s.file.Close()
	o.running.Done()
	o.collector.running.Done()
}

// LastWords implements supervisor.Output.
func (o *Output) LastWords(patience time.Duration) string {
	for end := time.Now().Add(patience); time.Now().Before(end) && slices.ContainsFunc(o.streams, (*stream).hasMore); {
		time.Sleep(2 * time.Millisecond)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.words.clone()
	for _, s := range o.streams {
		s.eachHeld(all.add)
	}
	return all.String()
}

// Close implements supervisor.Output.
func (o *Output) Close() {
	if o.pid == 0 {
		o.collector.remove(o)
		o.closeFiles()
		return
	}
	o.readUntil(time.Now().Add(leftoverTimeout))
	o.collector.running.Go(func() {
		o.running.Wait()
		o.collector.remove(o)
	})
}

// readUntil bounds how long the files are read.
func (o *Output) readUntil(t time.Time) {
	for _, s := range o.streams {
		s.file.SetReadDeadline(t)
	}
}

// closeFiles closes what was never read.
func (o *Output) closeFiles() {
	o.closeTheirs()
	for _, s := range o.streams {
		s.file.Close()
	}
}

func (o *Output) closeTheirs() {
	for i, file := range o.theirs {
		if file != nil && file != os.Stdout {
			file.Close()
		}
		o.theirs[i] = nil
	}
}

// resize gives its terminals the width that is left behind the prefix.
func (o *Output) resize() {
	terminal := o.collector.cfg.Terminal
	if terminal == nil {
		return
	}
	size, err := windowSize(terminal)
	if err != nil {
		return
	}
	if narrower := int(size.Col) - len(o.prefix); narrower > 0 {
		size.Col = uint16(narrower)
	}
	for _, s := range o.streams {
		sock.Control(s.file, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) }) // not for a pipe
	}
}

// prefixFor is what comes before a line of text.
func prefixFor(seat supervisor.Seat) string {
	width := len(strconv.Itoa(max(seat.Slots-1, seat.Slot)))
	return fmt.Sprintf("slot %*d | ", width, seat.Slot)
}

// part is what Save seals.
var part = reexec.Part{Name: "output", Version: 1}

// saved is what the program that takes this one's place needs to go on.
type saved struct {
	Streams []savedStream
	Words   [][]byte
}

type savedStream struct {
	Name string
	FD   int
	Held []byte
}

// Save implements supervisor.Output.
func (o *Output) Save(b *reexec.Bundle) (any, error) { return reexec.Seal(part, o.save(b)) }

func (o *Output) save(b *reexec.Bundle) saved {
	o.mu.Lock()
	defer o.mu.Unlock()
	state := saved{Words: o.words.lines}
	for _, s := range o.streams {
		if fd := b.KeepFile(s.file); fd >= 0 { // else it has ended
			state.Streams = append(state.Streams, savedStream{s.name, fd, slices.Clone(s.held)})
		}
	}
	return state
}

// restore goes on with what was saved.
func (o *Output) restore(b *reexec.Bundle, text json.RawMessage) error {
	var state saved
	if err := b.Unseal(text, part, &state); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	cfg := &o.collector.cfg
	for _, entry := range state.Streams {
		file, err := b.Take(entry.FD, "output of a worker")
		if err != nil {
			return err
		}
		if err := sock.Polled(file); err != nil {
			file.Close()
			return fmt.Errorf("output: %w", err)
		}
		sink := cfg.Stderr
		if entry.Name == stdout {
			sink = cfg.Stdout
		}
		o.streams = append(o.streams, &stream{output: o, name: entry.Name, sink: sink, file: file, held: entry.Held})
	}
	for _, line := range state.Words {
		o.words.add(line)
	}
	return nil
}
