package master

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/mailbox"
)

// Bounds of a polite refusal: how long and how much the client may go on sending
// while it reads the answer.
const (
	lingerTimeout = 2 * time.Second
	lingerBytes   = 256 << 10
)

// Why connections are refused. For want of a client there are also package
// clientip's errors, and for want of a worker mailbox.ErrLimit, fdpass.ErrFull and its like.
var (
	errEmpty         = errors.New("slot empty")
	errCrowded       = errors.New("too many parked; the limits are --max-parked and half of the open files (ulimit -n, LimitNOFILE=)")
	errGreedy        = errors.New("too many parked of this client; the limit is --max-per-client")
	errCrowdedSilent = fmt.Errorf("no request yet, and %w", errCrowded)
	errStopping      = errors.New("stopping before the request was complete")
	errUnwilling     = errors.New("the worker refuses connections (maxConnections, or its limit of open files)")
	errNoFile        = errors.New("no free file descriptor")
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
	case mailbox.ErrLimit:
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

// refuse ends a connection that nobody serves. It takes ownership of its
// descriptor and waits at most linger for the client to read the answer.
func (b *Balancer) refuse(a arrival, slot int, why error, linger time.Duration) {
	file := os.NewFile(uintptr(a.FD), "refused connection")
	defer file.Close()
	b.sayWhy(file, a, slot, why, linger)
}

// sayWhy tells the client and the log why a connection is refused. It borrows file,
// which is the connection's.
func (b *Balancer) sayWhy(file *os.File, a arrival, slot int, why error, linger time.Duration) {
	b.refused.Add(1)
	b.table.counts(slot).refused.Add(1)
	b.refusals.log(b.log, a, slot, why)
	b.tell(&a, slot, nil, why)
	if answer := answerTo(why); answer != nil && b.cfg.Refuse != RefuseClose {
		say(file, answer, linger)
	}
}

// say writes an answer so that the client receives it although its request was
// never read. Closing a socket with unread bytes sends a reset, which can
// overtake the answer; so what the client sends is read until it closes
// (RFC 9112, section 9.6).
func say(file *os.File, answer []byte, linger time.Duration) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	sent := false
	raw.Control(func(fd uintptr) {
		// The socket's buffer is empty: either this fits or the client is gone.
		n, err := unix.SendmsgN(int(fd), answer, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		sent = err == nil && n == len(answer)
		unix.Shutdown(int(fd), unix.SHUT_WR)
	})
	if sent && linger > 0 {
		file.SetReadDeadline(time.Now().Add(linger))
		io.CopyN(io.Discard, file, lingerBytes)
	}
}

// refusals bounds how often refusals are logged.
type refusals struct {
	mu      sync.Mutex
	last    time.Time
	leftOut int
}

// refusalLogInterval is the shortest time between two logged refusals.
const refusalLogInterval = time.Second

func (r *refusals) log(log hclog.Logger, a arrival, slot int, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.last) < refusalLogInterval {
		r.leftOut++
		return
	}
	fields := []any{"peer", a.Client.String()}
	if slot != noSlot {
		fields = append(fields, "client", a.client.Addr.String(), "slot", slot)
	}
	log.Warn("connection refused", append(fields, "reason", why.Error(), "left_out", r.leftOut)...)
	r.last, r.leftOut = now, 0
}
