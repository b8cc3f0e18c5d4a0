package nodeipc

import "github.com/handfast/handfast/fdpass"

// nackLine has Node send a descriptor again, and give up after three times.
var nackLine = []byte(`{"cmd":"NODE_HANDLE_NACK"}`)

// handBackAnswer answers a worker that asks whether it is to hand connections back.
type handBackAnswer struct {
	Cmd       string `json:"cmd"`
	Everybody bool   `json:"everybody"` // those of every peer
	Idle      int64  `json:"idle"`      // for how many milliseconds these may then be idle
}

// beginHandBack answers a worker that asks whether it is to hand connections back.
func (l *Link) beginHandBack() {
	if l.primary.cfg.HandBack != nil {
		l.handsBack = true
		l.post(packet{text: line(handBackAnswer{cmdHandBack, l.primary.cfg.Everybody, l.primary.cfg.IdleTimeout.Milliseconds()})})
	}
}

// receiveHandle handles a descriptor that the worker has sent with a message of its own. A program may send what it
// likes: what is not handed back is closed. Without the link's lock, since the connection may be handed to this worker again.
func (l *Link) receiveHandle(word string) {
	fd := l.channel.take()
	answer := ackLine
	switch {
	case word != cmdHandBack || l.primary.cfg.HandBack == nil:
		l.channel.discard(fd)
	case fd < 0: // we are at our limit of open files
		answer = nackLine
	default:
		if _, err := l.primary.cfg.HandBack(l, []fdpass.Handoff{{FD: fd}}); err != nil {
			l.channel.discard(fd)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.cutOff(err)
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.post(packet{text: append(answer[:len(answer):len(answer)], '\n')})
}

// Looks tells that the worker does not look at requests that it does not serve: it hands each connection back after each
// response, whatever comes next.
func (l *Link) Looks() bool { return false }

// HandsBack tells whether it hands connections back at all: it has loaded Config.Module, and the master takes them.
func (l *Link) HandsBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handsBack
}

// Drains tells whether the worker is handed nothing more.
func (l *Link) Drains() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped
}
