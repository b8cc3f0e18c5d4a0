package supervisor

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/handfast/handfast/master/reexec"
)

// Output is where a worker's processes write their standard output and error.
type Output interface {
	// Files are what the worker gets; the output goes on owning them.
	Files() (stdout, stderr *os.File)
	// Started says that the process has them.
	Started(pid int)
	// LastWords returns the last lines that were written, separated by newlines; empty if nobody reads
	// along. It waits until what is written now has been read, for patience at most.
	LastWords(patience time.Duration) string
	// Close comes last and once: nobody of the worker is left, none was started, or it is given up. It
	// must not wait.
	Close()
	// Save returns what the program that takes this one's place needs to go on, to be written as
	// JSON, and keeps descriptors. reexec.Lock is held. Nothing moves what was restored before Resume.
	Save(*reexec.Bundle) (any, error)
	Resume()
}

// wordsPatience is how long the end of a worker waits for its last words.
const wordsPatience = 100 * time.Millisecond

// inherited is the output of a worker that writes where we do.
type inherited struct{}

func (inherited) Files() (stdout, stderr *os.File)         { return os.Stdout, os.Stderr }
func (inherited) Started(int)                              {}
func (inherited) LastWords(time.Duration) string           { return "" }
func (inherited) Close()                                   {}
func (inherited) Save(*reexec.Bundle) (state any, _ error) { return nil, nil }
func (inherited) Resume()                                  {}

// worded is why something failed, with what the worker has written last.
type worded struct {
	error
	words     string
	elsewhere bool // nobody reads along
}

func (w worded) Unwrap() error { return w.error }

// withLastWords adds a worker's last words to a reason.
func (w *worker) withLastWords(why error, words string) error {
	_, elsewhere := w.output.(inherited)
	return worded{why, words, elsewhere}
}

// lastWordsOf returns what a reason has of them.
func lastWordsOf(why error) string {
	w, _ := errors.AsType[worded](why)
	return w.words
}

// quoteLastWords says what a worker has written before it failed, behind all else that there is to say; empty if why is not
// of a worker that ran, or it wrote nothing.
func quoteLastWords(why error) string {
	w, ok := errors.AsType[worded](why)
	switch {
	case w.words != "":
		return "; it wrote last:\n" + w.words
	case ok && w.elsewhere:
		return "; what it wrote is beside the log"
	}
	return ""
}

// openOutput makes the output of a worker that is about to be started.
func (s *Supervisor) openOutput(seat Seat) (Output, error) {
	if s.cfg.NewOutput == nil {
		return inherited{}, nil
	}
	return s.cfg.NewOutput(seat)
}

// restoreOutput makes that of a worker of the program before.
func (s *Supervisor) restoreOutput(seat Seat, pid int, state json.RawMessage) (Output, error) {
	if len(state) == 0 || string(state) == "null" || s.cfg.RestoreOutput == nil {
		return inherited{}, nil
	}
	return s.cfg.RestoreOutput(seat, pid, state)
}
