package sdnotify

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxMessage is how long a message may be; the rest of a longer one is not read.
	maxMessage = 4096
	// maxStatus is how many bytes of a STATUS= are kept.
	maxStatus = 256
)

// message is what one message says.
type message struct {
	ready, stopping bool
	ping, trigger   bool    // WATCHDOG=1, WATCHDOG=trigger
	status          *string // nil: it says nothing of that
}

// parse reads assignments, one a line. Those that it does not know, and lines that are none, have no effect.
func parse(text []byte) (m message) {
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		name, value, ok := bytes.Cut(line, []byte("="))
		if !ok {
			continue
		}
		switch string(name) {
		case "READY":
			m.ready = m.ready || string(value) == "1"
		case "STOPPING":
			m.stopping = m.stopping || string(value) == "1"
		case "WATCHDOG":
			m.ping = m.ping || string(value) == "1"
			m.trigger = m.trigger || string(value) == "trigger"
		case "STATUS":
			m.status = new(shown(value))
		}
	}
	return m
}

// shown is a status as it may be shown: text, on one line, and not too long.
func shown(value []byte) string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(value), "�"))
	for len(text) > maxStatus {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return strings.TrimSpace(text)
}
