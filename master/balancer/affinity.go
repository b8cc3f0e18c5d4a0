package balancer

import (
	"sync"
	"time"

	"github.com/handfast/handfast/hash"
)

// affinity remembers which worker has served a client last, by its key, so that it can go back there while the worker lingers after a
// reload. A client that is forgotten, since others have its place, goes to its slot as without.
type affinity struct {
	within time.Duration // for which a client that does not come is remembered

	mu      sync.Mutex
	clients []remembered // in groups of affinityWays, by key modulo the number of groups
}

// affinitySize is how many clients are remembered at most, a power of two. Each takes 16 bytes.
const affinitySize = 1 << 16

// affinityWays is how many clients share a place. Were it one, two of 200 clients would want the same in a quarter of all cases.
const affinityWays = 8

type remembered struct {
	key   hash.Key
	start uint32 // of the worker's Name; 0: nobody is remembered
	at    int64  // when it was served, in nanoseconds since 1970
}

func newAffinity(within time.Duration) *affinity {
	return &affinity{within: within, clients: make([]remembered, affinitySize)}
}

// served says that a worker, by the start in its name, was handed a client's connection.
func (a *affinity) served(key hash.Key, start uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	group := a.group(key)
	at := &group[0] // the client's, or else that of who has not come for longest
	for i := range group {
		if r := &group[i]; r.key == key {
			at = r
			break
		} else if r.at < at.at {
			at = r
		}
	}
	*at = remembered{key, start, time.Now().UnixNano()}
}

// servedBy returns which start of a worker has served a client, if it was lately; else 0.
func (a *affinity) servedBy(key hash.Key) (start uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.group(key) {
		if r.key == key && time.Now().UnixNano()-r.at < int64(a.within) {
			return r.start
		}
	}
	return 0
}

func (a *affinity) group(key hash.Key) []remembered {
	first := int(key) % (affinitySize / affinityWays) * affinityWays
	return a.clients[first:][:affinityWays]
}
