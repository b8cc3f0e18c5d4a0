package balancer

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

const (
	// lingerTimeout and lingerBytes bound a polite refusal: how long and how much the client may go on
	// sending while it reads the answer.
	lingerTimeout = 2 * time.Second
	lingerBytes   = 256 << 10

	// maxOverflow is how many connections beyond MaxParked are refused politely at a time.
	maxOverflow = 1024
)

// refuser ends connections that nobody serves: it answers, and lets the client read the answer. A
// goroutine runs for each of them meanwhile. A connection to a slot's own address is reset instead: a proxy
// that has chosen the slot knows no better answer, and tries another one by itself.
type refuser struct {
	ledger   *ledger
	mute     bool      // without an answer
	overflow *waitlist // connections for which there was no room to be parked
}

// answers are what refused clients read.
var (
	answerNoWorker = answer(502, "Bad Gateway", "No worker took this connection in time. Please try again.")
	answerCrowded  = answer(503, "Service Unavailable", "Too many connections are waiting for a worker. Please try again.")
	answerLimit    = answer(503, "Service Unavailable", "Too many connections are open. Please try again.")
	answerStopping = answer(503, "Service Unavailable", "This server is stopping. Please try again.")
	answerTooSlow  = answer(408, "Request Timeout", "The head of the request did not arrive in time.")
	answerTooLarge = answer(431, "Request Header Fields Too Large", "The head of the request is too long.")
)

// answerTo returns the answer that tells a client why it is refused, and none when
// the client is not known to speak HTTP.
func answerTo(why error) []byte {
	switch why {
	case errCrowded, errGreedy, errNoFile:
		return answerCrowded
	case fdpass.ErrLimit:
		return answerLimit
	case errStopping:
		return answerStopping
	case clientip.ErrPartial:
		return answerTooSlow
	case clientip.ErrTooLarge:
		return answerTooLarge
	case errCrowdedSilent, clientip.ErrSilent, clientip.ErrNoProxyHeader, clientip.ErrBadProxyHeader, clientip.ErrProxyForbidden:
		return nil
	default:
		return answerNoWorker
	}
}

// answer writes a complete HTTP/1.1 response (RFC 9112) after which the
// connection ends.
func answer(status int, text, body string) []byte {
	body += "\n"
	more := ""
	if status == 503 { // it is for a moment
		more = "Retry-After: 1\r\n"
	}
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\n%sConnection: close\r\n\r\n%s",
		status, text, len(body), more, body)
}

// refuse takes ownership of a connection that is not parked. It does not wait.
func (r *refuser) refuse(c connection, slot int, why error) {
	reexec.Lock.MustHold()
	if c.addressed {
		r.ledger.wasRefused(&c, slot, why)
		sock.ResetOnClose(c.FD)
		unix.Close(c.FD)
		return
	}
	if p, err := r.overflow.enter(c, waitKey{slot: slot}, maxOverflow); err == nil {
		go r.end(p, r.overflow, nil, slot, why)
		return
	}
	// There is no room even to refuse politely: answer, but do not wait until the client has
	// read it.
	r.reply(c.FD, &c, slot, why)
	fdpass.CloseConnections(c.FD)
}

// end refuses a connection that is on a waitlist, and returns when it is closed. file is its
// descriptor's; nil: it is to be made.
func (r *refuser) end(p *parked, in *waitlist, file *os.File, slot int, why error) {
	reexec.Lock.RLock()
	if file == nil {
		file = os.NewFile(uintptr(p.FD), "refused connection")
	}
	if p.addressed {
		r.ledger.wasRefused(&p.connection, slot, why)
		in.leave(p)
		sock.Control(file, func(fd int) error { sock.ResetOnClose(fd); return nil })
		reexec.Lock.RUnlock()
		file.Close()
		return
	}
	p.refused = true
	replied := false
	sock.Control(file, func(fd int) error { replied = r.reply(fd, &p.connection, slot, why); return nil })
	reexec.Lock.RUnlock()
	r.linger(p, in, file, replied)
}

// linger waits until the client has read its answer, if there is one, and ends the connection.
// Closing a socket with unread bytes sends a reset, which can overtake the answer; so what the
// client sends is read until it closes (RFC 9112, section 9.6).
func (r *refuser) linger(p *parked, in *waitlist, file *os.File, replied bool) {
	if replied {
		file.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.CopyN(io.Discard, file, lingerBytes)
	}
	reexec.Lock.RLock()
	in.leave(p)
	reexec.Lock.RUnlock()
	closeConnection(file)
}

// reply tells the client and the ledger why a connection is refused, and whether the client got an
// answer. It borrows the connection's descriptor.
func (r *refuser) reply(fd int, c *connection, slot int, why error) (sent bool) {
	r.ledger.wasRefused(c, slot, why)
	answer := answerTo(why)
	if answer == nil || r.mute {
		return false
	}
	// The socket's buffer is empty: either this fits or the client is gone.
	n, err := unix.SendmsgN(fd, answer, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	unix.Shutdown(fd, unix.SHUT_WR) // nothing follows
	return err == nil && n == len(answer)
}

// closeConnection closes a connection that a worker may have had: with lingering off, or it could wait for as long as
// that worker has said (fdpass.CloseConnections). For the same reason the gate of reexec must not be held.
func closeConnection(file *os.File) {
	sock.Control(file, func(fd int) error { sock.StopLingering(fd); return nil })
	file.Close()
}
