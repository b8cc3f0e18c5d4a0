package output

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Bounds of what is kept of a worker's last lines.
const (
	maxWords     = 10
	maxWordBytes = 2 << 10
	maxWordLine  = 500
)

// words are the last lines of a worker. Empty ones do not count.
type words struct{ lines [][]byte }

func (w *words) add(line []byte) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	if len(w.lines) == maxWords {
		w.lines = slices.Delete(w.lines, 0, 1)
	}
	w.lines = append(w.lines, bytes.Clone(line[:min(len(line), maxWordLine)]))
}

func (w *words) clone() words { return words{slices.Clone(w.lines)} }

// escape is a command to a terminal (ECMA-48, and what xterm has beside it): CSI, OSC, and others of two bytes.
var escape = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])`)

// String returns them fit to be shown to anybody: without what a terminal takes for commands.
func (w *words) String() string {
	text, size := "", 0
	for _, line := range slices.Backward(w.lines) {
		clean := escape.ReplaceAllString(strings.ToValidUTF8(string(line), "?"), "")
		clean = strings.TrimRightFunc(strings.Map(func(r rune) rune {
			switch {
			case r == '\t':
				return ' '
			case unicode.IsControl(r):
				return -1
			}
			return r
		}, clean), unicode.IsSpace)
		if size += len(clean) + 1; size > maxWordBytes {
			break
		}
		text = clean + "\n" + text
	}
	return strings.TrimSuffix(text, "\n")
}
