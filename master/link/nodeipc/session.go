package nodeipc

import (
	"encoding/json"

	"github.com/handfast/handfast/master/clientip"
)

// maxSessions is how many sessions of one worker are known. Requests of further ones go
// by their clients.
const maxSessions = 1 << 18

// Sessions is told which worker keeps which session. Its methods must not wait.
type Sessions interface {
	Claim(id clientip.Session, l *Link) bool // false: another one keeps it
	Release(id clientip.Session, l *Link)
}

// sessionBegins notes a session that a worker of @socket.io/sticky keeps, by its name.
func (l *Link) sessionBegins(name json.RawMessage) {
	var text string
	if json.Unmarshal(name, &text) == nil {
		l.keepSession(text)
	}
}

func (l *Link) keepSession(name string) {
	id := clientip.NameSession(name)
	if id != 0 && len(l.sessions) < maxSessions && l.primary.cfg.Sessions.Claim(id, l) {
		l.sessions[id] = name
	}
}

// sessionEnds notes that the worker keeps one no longer. With its last one a worker that drains may go.
func (l *Link) sessionEnds(name json.RawMessage) {
	id := sessionOf(name)
	if _, known := l.sessions[id]; !known {
		return
	}
	delete(l.sessions, id)
	l.primary.cfg.Sessions.Release(id, l)
	if l.leaving && len(l.sessions) == 0 {
		l.finishDrain()
	}
}

// waitNoLonger is called when no request will come for the sessions of a worker that drains.
func (l *Link) waitNoLonger() {
	if l.leaving {
		l.finishDrain()
	}
}

// forgetSessions notes that the worker serves none any more.
func (l *Link) forgetSessions() {
	for id := range l.sessions {
		l.primary.cfg.Sessions.Release(id, l)
	}
	clear(l.sessions)
}

func sessionOf(name json.RawMessage) clientip.Session {
	var text string
	if json.Unmarshal(name, &text) != nil {
		return 0
	}
	return clientip.NameSession(text)
}
