package nodeipc

import "bytes"

// The messages that workers send most: two for each connection that a server gets. Node writes these
// lines always alike, so that they need not be parsed; whatever differs is.
var (
	ackLine      = []byte(`{"cmd":"NODE_HANDLE_ACK"}`)
	acceptBefore = []byte(`{"cmd":"NODE_CLUSTER","ack":`)
	acceptAfter  = []byte(`,"accepted":true,"seq":`)
)

// maxDigits is how many digits of a number always fit into an int64.
const maxDigits = 18

// handleAck does what one of these lines asks for, and returns false for any other.
func (l *Link) handleAck(text []byte) bool {
	if isAck(text) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.handleTaken()
		return true
	}
	seq, ok := isAccept(text)
	if ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.acknowledged(seq, true)
	}
	return ok
}

// isAck tells whether the line is Node's {"cmd":"NODE_HANDLE_ACK"}, to the byte.
func isAck(line []byte) bool { return bytes.Equal(line, ackLine) }

// isAccept tells whether the line is a server's word that it has taken the connection seq,
// as Node writes it.
func isAccept(line []byte) (seq int64, ok bool) {
	rest, ok := bytes.CutPrefix(line, acceptBefore)
	if !ok {
		return 0, false
	}
	seq, rest, ok = cutNumber(rest)
	if !ok {
		return 0, false
	}
	if rest, ok = bytes.CutPrefix(rest, acceptAfter); !ok {
		return 0, false
	}
	_, rest, ok = cutNumber(rest) // the worker's own count
	return seq, ok && string(rest) == "}"
}

// cutNumber cuts a number off that is not negative, written as JSON writes integers.
func cutNumber(text []byte) (n int64, rest []byte, ok bool) {
	digits := 0
	for digits < len(text) && '0' <= text[digits] && text[digits] <= '9' {
		n = n*10 + int64(text[digits]-'0')
		if digits++; digits > maxDigits {
			return 0, nil, false
		}
	}
	leadingZero := digits > 1 && text[0] == '0'
	return n, text[digits:], digits > 0 && !leadingZero
}
