package nodeipc

import (
	"encoding/json"
	"errors"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/link/listening"
)

func itoa(n int) string { return strconv.Itoa(n) }

// handle does what one message of the worker asks for.
func (l *Link) handle(text []byte) {
	if l.handleAck(text) {
		return
	}
	var m message
	var other *json.UnmarshalTypeError // a program's own message, which may have anything anywhere
	if err := json.Unmarshal(text, &m); err != nil && !errors.As(err, &other) {
		return
	}
	if m.Source == adapterSource {
		l.primary.relay.pass(l, &m, text)
		return
	}
	if m.Cmd == cmdHandle {
		l.receiveHandle(m.Msg.Cmd)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.Type {
	case typeSession:
		l.sessionBegins(m.Data)
	case typeSessionEnd:
		l.sessionEnds(m.Data)
	}
	switch m.Cmd {
	case cmdAck:
		l.handleTaken()
	case cmdNack:
		l.handleLost()
	case cmdHandBack:
		l.beginHandBack()
	case cmdNotifyClose: // or its server never closes
		l.post(packet{text: line(socketsReply{Cmd: cmdAllClosed, Key: m.Key})})
	case cmdGetCount:
		l.post(packet{text: line(socketsReply{Cmd: cmdCount, Key: m.Key, Count: new(int)})})
	case cmdCluster:
		l.asked(&m)
	case cmdReady:
		l.maybeReady(ReadyMessage)
	case cmdDisconnect:
		l.leave(ErrAskedFor)
	case "":
		if m.Type == "close" && l.dialect == StickySession {
			l.leave(ErrAskedFor)
		}
	}
}

// asked answers what a cluster worker asks its primary.
func (l *Link) asked(m *message) {
	switch {
	case m.Ack != nil:
		l.acknowledged(*m.Ack, m.Accepted)
	case m.Act == "online":
		if l.primary.cfg.ReadyWhen == ReadyStarted {
			l.ping()
		}
	case m.Act == "queryServer":
		l.queryServer(m)
	case m.Act == "listening":
		if l.has(m.query.key()) {
			l.readyBy(ReadyListening)
		}
	case m.Act == "close":
		l.serverClosed(m.Key)
	case m.Act == "exitedAfterDisconnect":
		// With the answer it disconnects, as it does when it is told to. Twice is an
		// error that ends it.
		if !l.drained {
			l.drained = true
			l.post(packet{text: line(map[string]any{"cmd": cmdCluster, "ack": m.Seq, "seq": l.next()})})
		}
		l.leave(ErrAskedFor)
	}
}

// queryServer answers a worker that wants to listen. On the balancer's port it gets the slot's
// connections from now on, or the slot's listener if it has one; on anything else a socket
// that it shares with the others.
func (l *Link) queryServer(m *message) {
	q := &m.query
	if len(l.flight)+len(l.lost) > window+maxShared {
		l.cutOff(ErrDoesNotRead) // it takes answers and acknowledges none
		return
	}
	if q.Address != nil && len(*q.Address) > maxAddress {
		l.post(packet{text: line(reply{Cmd: cmdCluster, Ack: m.Seq, Errno: -int(unix.EINVAL), Seq: l.next()})})
		return
	}
	if len(q.Data) > maxData {
		q.Data = nil
	}
	key := q.key()
	answer := reply{Cmd: cmdCluster, Ack: m.Seq, Key: key, Seq: l.next(), Data: l.primary.dataOf(key, q.Data)}
	listeners := l.primary.balancer(q)
	switch {
	case q.inherited():
		answer.Errno = -int(unix.ENOTSUP)
	case len(listeners) > 0:
		addr, err := l.listens(key, q, listeners)
		if err != nil {
			answer.Errno = -errnoOf(err)
			if _, narrower := errors.AsType[*listening.NarrowerError](err); narrower && !l.drained && len(l.refused) == 0 {
				l.refused = append(l.refused, packet{text: line(answer)}) // or it ends before anybody has heard why
				l.leave(err)
				return
			}
			break
		}
		if file := l.ownListener(addr); file != nil {
			l.sendShared(answer, file)
			return
		}
		family := "IPv4"
		if addr.Addr().Is6() {
			family = "IPv6"
		}
		answer.Sockname = &sockname{Address: addr.Addr().String(), Family: family, Port: q.Port}
	default:
		file, err := l.primary.share(q)
		if err != nil {
			answer.Errno = -errnoOf(err)
			break
		}
		l.sendShared(answer, file)
		return
	}
	l.post(packet{text: line(answer)})
}

// warnOnce logs what a worker may cause again and again.
func (l *Link) warnOnce(message string, args ...any) {
	if !l.warned[message] {
		l.warned[message] = true
		l.primary.log.Warn(message, args...)
	}
}

func errnoOf(err error) int {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return int(errno)
	}
	return int(unix.EADDRNOTAVAIL)
}
