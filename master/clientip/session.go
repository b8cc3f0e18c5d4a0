package clientip

import (
	"bytes"
	"hash/maphash"
)

// Session stands for the name of a session, such as Engine.IO's `sid`, that a worker keeps.
// Zero is none. Names are secrets of their clients, and many: what is kept is a hash, which
// nobody outside this process can compute.
type Session uint64

// MaxSessionName is the longest name of a session, in bytes.
const MaxSessionName = 128

var sessionSeed = maphash.MakeSeed()

// NameSession returns the session of a name, which is none if it is empty or too long.
func NameSession(name []byte) Session {
	if len(name) == 0 || len(name) > MaxSessionName {
		return 0
	}
	return Session(max(maphash.Bytes(sessionSeed, name), 1))
}

// sessionIn returns the session that the target of a request line names: the value of
// `sid` in its query.
func sessionIn(line []byte) Session {
	_, line, _ = bytes.Cut(line, []byte(" "))
	target, _, _ := bytes.Cut(line, []byte(" "))
	_, query, _ := bytes.Cut(target, []byte("?"))
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		if name, found := bytes.CutPrefix(pair, []byte("sid=")); found {
			return NameSession(name)
		}
	}
	return 0
}
