package worker

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// passedPause is the time between two looks whether a connection can be received, or what other workers have sent is closed.
const passedPause = 50 * time.Millisecond

// errNoExit ends the listener: whoever passes connections to us would do so for nothing. It is none of the errors that go by.
var errNoExit = errors.New("worker: no free file descriptors for what other workers pass to this one")

// setPassages takes ownership of ends of passages: the exit of ours, the first time, and entrances of those of other slots' workers.
func (h *handBack) setPassages(m *fdpass.Message) (err error) {
	if h != nil && h.exit == nil && m.Lost > 0 {
		err = errNoExit // perhaps
	}
	for _, end := range m.Handoffs {
		slot := end.PassageSlot()
		switch {
		case h == nil || slot >= len(h.entrances):
			unix.Close(end.FD)
		case slot != h.slot:
			if entrance, err := fdpass.NewEntrance(end.FD); err == nil {
				h.setEntrance(slot, entrance)
			}
		case h.exit != nil:
			unix.Close(end.FD)
		default:
			exit, failed := fdpass.NewExit(end.FD)
			if failed != nil {
				err = errNoExit
				continue
			}
			h.exit, err = exit, nil
			go h.receivePassed(exit)
		}
	}
	return err
}

// setEntrance takes ownership of the entrance of the passage of a slot's worker; nil: there is none any more.
func (h *handBack) setEntrance(slot int, entrance *fdpass.Conn) {
	if before := h.entrances[slot].Swap(entrance); before != nil {
		before.Close()
	}
}

// pass passes a connection to the worker of a slot. It borrows its descriptor, and returns false if the master has to have it.
func (h *handBack) pass(slot int, conn []fdpass.Handoff) bool {
	if slot < 0 || slot >= len(h.entrances) {
		return false
	}
	entrance := h.entrances[slot].Load()
	if entrance == nil {
		return false
	}
	err := entrance.TrySend(fdpass.TypePass, conn)
	if errors.Is(err, fdpass.ErrClosed) && h.entrances[slot].CompareAndSwap(entrance, nil) {
		entrance.Close()
	}
	return err == nil
}

// receivePassed takes ownership of the exit of our passage, and takes connections from other workers until nobody passes any more, or the
// last connection of all is closed.
func (h *handBack) receivePassed(exit *fdpass.Conn) {
	defer exit.Close()
	var m fdpass.Message
	for {
		err := exit.ReceiveLocked(&m, &h.listener.mu)
		if n := len(m.Handoffs); n > 0 {
			h.listener.open += n // now: the last one of all may be closed meanwhile
			h.listener.reportSoon()
		}
		h.listener.mu.Unlock()
		switch {
		case err == nil:
			for _, c := range m.Handoffs {
				h.takePassed(exit, c, m.Type)
			}
		case errors.Is(err, fdpass.ErrMalformed): // of somebody among many
		case errors.Is(err, fdpass.ErrNoFiles):
			time.Sleep(passedPause)
		default:
			return
		}
		for exit.Full() {
			time.Sleep(passedPause)
		}
	}
}

// takePassed takes ownership of what another worker has sent. If it is a connection of ours that was away we go on with it, and look at its
// request. What else it may be is for the master to see.
func (h *handBack) takePassed(exit *fdpass.Conn, c fdpass.Handoff, t fdpass.Type) {
	if t == fdpass.TypePass && h.takeReturned(c, true) {
		h.passed.Add(1)
		return
	}
	defer h.listener.count(-1)
	defer exit.Discard([]fdpass.Handoff{c}) // the message has a copy
	for t == fdpass.TypePass && sock.Cookie(c.FD) != 0 && errors.Is(h.conn.TrySend(fdpass.TypePass, []fdpass.Handoff{c}), fdpass.ErrFull) {
		time.Sleep(handBackPause) // the master is asleep, and nobody else can serve this
	}
}
