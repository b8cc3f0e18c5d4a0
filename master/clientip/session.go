package clientip

import (
	"hash/maphash"

	"github.com/handfast/handfast/fdpass/forwarded"
)

// Session stands for the name of a session, such as Engine.IO's `sid`, that a worker keeps.
// Zero is none. Names are secrets of their clients, and many: what is kept is a hash, which
// nobody outside this process can compute.
type Session uint64

// MaxSessionName is the longest name of a session, in bytes.
const MaxSessionName = 128

var sessionSeed = maphash.MakeSeed()

// NameSession returns the session of a name, which is none if it is empty or too long.
func NameSession(name string) Session {
	if len(name) == 0 || len(name) > MaxSessionName {
		return 0
	}
	return Session(max(maphash.String(sessionSeed, name), 1))
}

// sessionIn returns the session that the target of a request line names, as Engine.IO does.
func sessionIn(target string) Session {
	return NameSession(forwarded.Key{Kind: forwarded.ByEngineIO}.InTarget(target))
}
