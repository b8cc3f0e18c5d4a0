package balancer

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/reexec"
)

// Bounds of a polite refusal: how long and how much the client may go on sending
// while it reads the answer.
const (
	lingerTimeout = 2 * time.Second
	lingerBytes   = 256 << 10
)

// What refused clients read.
var (
	noWorker = answer(502, "Bad Gateway", "No worker took this connection in time. Please try again.")
	crowded  = answer(503, "Service Unavailable", "Too many connections are waiting for a worker. Please try again.")
	occupied = answer(503, "Service Unavailable", "Too many connections are open. Please try again.")
	stopping = answer(503, "Service Unavailable", "This server is stopping. Please try again.")
	tooSlow  = answer(408, "Request Timeout", "The head of the request did not arrive in time.")
	tooLarge = answer(431, "Request Header Fields Too Large", "The head of the request is too long.")
)

// answerTo returns the answer that tells a client why it is refused, and none when
// the client is not known to speak HTTP.
func answerTo(why error) []byte {
	switch why {
	case errCrowded, errGreedy, errNoFile:
		return crowded
	case fdpass.ErrLimit:
		return occupied
	case errStopping:
		return stopping
	case clientip.ErrPartial:
		return tooSlow
	case clientip.ErrTooLarge:
		return tooLarge
	case errCrowdedSilent, clientip.ErrSilent, clientip.ErrNoProxyHeader, clientip.ErrBadProxyHeader, clientip.ErrProxyForbidden:
		return nil
	default:
		return noWorker
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

// refuse ends a parked connection that nobody serves. file is its descriptor's; nil: it is to be
// made.
func (b *Balancer) refuse(p *parked, in *lot, file *os.File, slot int, why error) {
	reexec.Lock.RLock()
	if file == nil {
		file = os.NewFile(uintptr(p.FD), "refused connection")
	}
	p.refused = true
	said := false
	controlFile(file, func(fd int) error { said = b.sayWhy(fd, p.arrival, slot, why); return nil })
	reexec.Lock.RUnlock()
	b.linger(p, in, file, said)
}

// linger waits until the client has read its answer, if there is one, and ends the connection.
// Closing a socket with unread bytes sends a reset, which can overtake the answer; so what the
// client sends is read until it closes (RFC 9112, section 9.6).
func (b *Balancer) linger(p *parked, in *lot, file *os.File, said bool) {
	if said {
		file.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.CopyN(io.Discard, file, lingerBytes)
	}
	reexec.Lock.RLock()
	in.leave(p)
	reexec.Lock.RUnlock()
	end(file)
}

// end closes a connection that a worker may have had: with lingering off, or it could wait for as long as
// that worker has said (fdpass.CloseConnections). For the same reason reexec.Lock must not be held.
func end(file *os.File) {
	controlFile(file, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	})
	file.Close()
}

// sayWhy tells the client and the log why a connection is refused, and whether the client got an
// answer. It borrows the connection's descriptor.
func (b *Balancer) sayWhy(fd int, a arrival, slot int, why error) (said bool) {
	b.refused.Add(1)
	b.table.counts(slot).refused.Add(1)
	b.logRefusal(a, slot, why)
	b.tell(&a, slot, nil, why)
	answer := answerTo(why)
	return answer != nil && b.cfg.Refuse != RefuseClose && say(fd, answer)
}

// say sends an answer, and nothing follows.
func say(fd int, answer []byte) (sent bool) {
	// The socket's buffer is empty: either this fits or the client is gone.
	n, err := unix.SendmsgN(fd, answer, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	unix.Shutdown(fd, unix.SHUT_WR)
	return err == nil && n == len(answer)
}

// logRefusal says why a connection is refused.
func (b *Balancer) logRefusal(a arrival, slot int, why error) {
	fields := []any{"peer", a.Client.String()}
	if slot != NoSlot {
		fields = append(fields, "client", a.client.Addr.String(), "slot", slot)
	}
	b.log.Warn("connection refused", append(fields, "reason", why.Error())...)
}
