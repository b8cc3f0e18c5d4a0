package master

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
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
)

// answer writes a complete HTTP/1.1 response (RFC 9112) after which the
// connection ends.
func answer(status int, text, body string) []byte {
	body += "\n"
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n%s",
		status, text, len(body), body)
}

// refuse ends a connection that nobody serves. It takes ownership of its
// descriptor and waits at most linger for the client to read the answer.
func (b *Balancer) refuse(h fdpass.Handoff, answer []byte, why error, linger time.Duration) {
	b.refused.Add(1)
	b.refusals.log(b, h, why)
	if b.cfg.Refuse == RefuseClose {
		unix.Close(h.FD)
		return
	}
	file := os.NewFile(uintptr(h.FD), "refused connection")
	defer file.Close()
	say(file, answer, linger)
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

func (r *refusals) log(b *Balancer, h fdpass.Handoff, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.last) >= refusalLogInterval {
		slot := b.cfg.Strategy.Slot(h.Client.Addr(), b.table.Len(), 0)
		b.log.Warn("connection refused", "client", h.Client.String(), "slot", slot, "reason", why.Error(), "left_out", r.leftOut)
		r.last, r.leftOut = now, 0
		return
	}
	r.leftOut++
}
