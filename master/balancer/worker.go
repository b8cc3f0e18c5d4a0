package balancer

import "github.com/handfast/handfast/fdpass"

// Worker takes connections for one slot.
type Worker interface {
	// Deliver takes ownership of the first n of conns; the caller still owns the
	// others and may deliver them again, here or elsewhere. It must not wait and
	// must not keep the slice. err says why not all were taken: fdpass.ErrFull
	// when the worker does not keep up, fdpass.ErrInFlight when another one does not,
	// fdpass.ErrLimit when they are to be refused at once.
	Deliver(conns []fdpass.Handoff) (n int, err error)
}

// Opener is a Worker that may be able to tell how many connections it has open.
type Opener interface {
	Worker
	OpenConnections() (n int, ok bool)
}

// Copier is a Worker whose connections are sent to it, as copies. Then the straight line closes
// its own of a whole batch at once.
type Copier interface {
	Worker
	// Copy is Deliver, except that it borrows conns: the caller closes the first n, at once,
	// since a client sees its connection end when the last copy is closed.
	Copy(conns []fdpass.Handoff) (n int, err error)
}
