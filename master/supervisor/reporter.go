package supervisor

import "sync"

// maxReports is how many reports wait for whoever takes them; further ones are left out.
const maxReports = 4096

// reporter calls functions in the order in which they are added, one after the other, in a goroutine of its own
// that ends when there is none left. A log that hangs, or a callback, so holds up what comes behind it here,
// and nothing else.
type reporter struct {
	leftOut func(reports int) // is told, in their place, how many were left out

	mu      sync.Mutex
	waiting []func()
	lost    int
	idle    chan struct{} // closed when all have been called; nil: nobody calls any
}

// add has f called.
func (r *reporter) add(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) >= maxReports {
		r.lost++
		return
	}
	r.waiting = append(r.waiting, f)
	if r.idle == nil {
		r.idle = make(chan struct{})
		go r.run()
	}
}

func (r *reporter) run() {
	for {
		for _, f := range r.next() {
			f()
		}
		if r.ends() {
			return
		}
	}
}

// next takes what waits.
func (r *reporter) next() []func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.waiting
	if lost := r.lost; lost > 0 {
		next = append(next, func() { r.leftOut(lost) })
	}
	r.waiting, r.lost = nil, 0
	return next
}

// ends tells whether nothing waits, so that the goroutine ends.
func (r *reporter) ends() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) > 0 || r.lost > 0 {
		return false
	}
	close(r.idle)
	r.idle = nil
	return true
}

// isIdle tells whether all have been called that were added.
func (r *reporter) isIdle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.idle == nil
}

// done returns what is closed when all have been called.
func (r *reporter) done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle == nil {
		return isClosed
	}
	return r.idle
}

// isClosed is a channel that is closed.
var isClosed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()
