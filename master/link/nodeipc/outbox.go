package nodeipc

import (
	"bytes"
	"os"
)

const (
	// maxAnswers is how many bytes of answers may wait for a worker that asks and does not
	// read. Beyond it the link ends.
	maxAnswers = 1 << 20
	// maxRelayed is how many bytes of other workers' messages may wait for a worker. While
	// there are as many, further ones are dropped. The longest single one is maxLine.
	maxRelayed = 16 << 20
	// relayedCost is what a waiting message costs besides its bytes.
	relayedCost = 64
)

// outbox holds what there was no room for in the channel. It is guarded by the link's
// lock.
type outbox struct {
	rest        []byte   // of a message of which a part went: nothing may come between
	answers     []packet // what the worker asked for, or is told by us
	answersSize int
	relayed     [][]byte // what other workers say; shared with other links
	relayedSize int
	connections bool // it is the turn of a connection, if there is one
}

func (o *outbox) addAnswer(p packet) {
	o.answers = append(o.answers, p)
	o.answersSize += len(p.text)
}

func (o *outbox) addRelayed(text []byte) {
	o.relayed = append(o.relayed, text)
	o.relayedSize += len(text) + relayedCost
}

// packet is a message of ours.
type packet struct {
	text []byte
	file *os.File // rides on its first byte; nil: nothing does
}

// post sends a message of ours, behind those that wait for room.
func (l *Link) post(p packet) {
	if l.outbox.answersSize > maxAnswers {
		l.cutOff(ErrDoesNotRead)
		return
	}
	l.outbox.addAnswer(p)
	l.pump()
}

// cutOff ends the link of a worker that misbehaves. As soon as it reads on it finds the end
// of its channel, and Node ends it. Its words about connections still count.
func (l *Link) cutOff(why error) {
	l.leave(why)
	l.outbox = outbox{}
	l.channel.closeWrite()
}

// postRelayed sends a message of another worker, behind those that others sent before. It borrows
// text for good: nobody may change it.
func (l *Link) postRelayed(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.outbox.relayedSize >= maxRelayed {
		l.countMissed()
		return
	}
	l.outbox.addRelayed(text)
	l.pump()
}

// sendShared sends a listener that is not the balancer's, as the answer to a query.
func (l *Link) sendShared(answer reply, file *os.File) {
	l.flight = append(l.flight, sent{answer: answer, file: file})
	l.post(packet{text: line(map[string]any{"cmd": cmdHandle, "type": "net.Native", "msg": answer}), file: file})
}

// ping asks for a word that Node itself gives when the program's first turn is over: that a
// message came without its descriptor. Descriptors must not follow until then, since the first
// of them would be taken for the one that is missing.
func (l *Link) ping() {
	if l.pinged {
		return
	}
	l.pinged = true
	l.flight = append(l.flight, sent{ping: true})
	l.post(packet{text: []byte(`{"cmd":"NODE_HANDLE","type":"net.Native","msg":null}` + "\n")})
}

// pong notes that the program has run.
func (l *Link) pong(i int) {
	l.flight = append(l.flight[:i], l.flight[i+1:]...)
	l.pinged = false
	l.maybeReady(ReadyStarted)
	l.pump()
}

// pump sends what waits, as far as window and channel allow. It is called whenever one
// of them may have opened.
func (l *Link) pump() {
	if !l.trySend() {
		select {
		case l.full <- struct{}{}:
		default: // write knows
		}
	}
}

// trySend returns false when there is no room for something that could be sent.
func (l *Link) trySend() (done bool) {
	for {
		some, err := l.sendNext()
		switch {
		case err == errFull:
			return false
		case err == errInFlight, err == errNoMemory: // nobody tells when that is over
			l.inFlight = err == errInFlight
			l.startPause()
			return true
		case err == errGone: // then receive handles it
			l.outbox = outbox{}
			return true
		case err != nil: // it is not allowed, perhaps for good: its clients go elsewhere, and it is told when it can be
			l.leave(err)
			l.startPause()
			return true
		case !some:
			return true
		}
	}
}

// sendNext sends what is next, or a part of it: the rest of what was begun, answers, and then
// by turns a connection and what another worker says, so that neither waits for all of the
// other. It returns false when there is nothing.
func (l *Link) sendNext() (some bool, err error) {
	o := &l.outbox
	connection := len(l.queue) > 0 && len(l.flight) < window && !l.paused && !l.shut && !l.pinged
	switch {
	case len(o.rest) > 0:
		n, err := l.channel.send(o.rest, -1)
		o.rest = o.rest[n:]
		return true, err
	case len(o.answers) > 0 && !(l.pinged && o.answers[0].file != nil):
		p := o.answers[0]
		if err := l.begin(p); err != nil {
			return true, err
		}
		o.answers[0] = packet{}
		o.answers = o.answers[1:]
		o.answersSize -= len(p.text)
		return true, nil
	case connection && (o.connections || len(o.relayed) == 0):
		o.connections = false
		return true, l.sendConnection()
	case len(o.relayed) > 0:
		text := o.relayed[0]
		if err := l.begin(packet{text: text}); err != nil {
			return true, err
		}
		o.relayed[0] = nil
		o.relayed = o.relayed[1:]
		o.relayedSize -= len(text) + relayedCost
		o.connections = true
		return true, nil
	default:
		return false, nil
	}
}

// begin sends a message as far as there is room. It borrows the text until that is sent.
func (l *Link) begin(p packet) error {
	n, err := l.channel.sendWith(p.text, p.file)
	if err == nil {
		l.outbox.rest = p.text[n:]
	}
	return err
}

// sendConnection sends the first of the queue.
func (l *Link) sendConnection() error {
	w := l.queue[0]
	offer := l.offerTo(w.FD)
	l.text = offer.append(l.text[:0], l.seq+1)
	n, err := l.channel.send(l.text, w.FD)
	if err != nil {
		return err
	}
	l.inFlight = false
	l.queue = l.queue[1:]
	l.flight = append(l.flight, sent{seq: l.next(), handoff: w, cluster: offer.cluster})
	if n < len(l.text) {
		l.outbox.rest = bytes.Clone(l.text[n:])
	}
	return nil
}

// write sends what there was no room for.
func (l *Link) write() {
	stopping := l.primary.stopping
	for {
		select {
		case <-l.full:
		case <-stopping:
			stopping = nil
			l.locked(l.waitNoLonger)
			continue
		case <-l.ended:
			return
		}
		if l.channel.whenRoom(func() (done bool) {
			l.locked(func() { done = l.trySend() })
			return done
		}) != nil {
			return
		}
	}
}
