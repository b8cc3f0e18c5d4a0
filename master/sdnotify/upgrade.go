package sdnotify

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

var part = reexec.Part{Name: "sdnotify.receiver", Version: 1}

// saved is what another program needs to go on with a Receiver. Its worker was ready.
type saved struct {
	FD       int
	Name     string
	Status   string
	Pings    uint64
	Stopping bool
}

var _ supervisor.Notices = (*Receiver)(nil)

// Save implements supervisor.Notices. What is read between that and the end of this program is lost.
func (r *Receiver) Save(b *reexec.Bundle) (any, error) { return reexec.Seal(part, r.save(b)) }

func (r *Receiver) save(b *reexec.Bundle) saved {
	said := r.Said()
	state := saved{FD: b.KeepFile(r.conn), Name: r.name, Status: said.Status, Pings: said.Pings}
	select {
	case <-r.stopping:
		state.Stopping = true
	default:
	}
	return state
}

// errSaved: what the program before has left is no socket that a worker could send to.
var errSaved = errors.New("sdnotify: that cannot be")

// Restore returns what makes Receivers of what Save has returned, for supervisor.Config.
func Restore(b *reexec.Bundle) func(pid int, state json.RawMessage) (supervisor.Notices, error) {
	return func(pid int, text json.RawMessage) (supervisor.Notices, error) {
		var state saved
		if err := b.Unseal(text, part, &state); err != nil {
			return nil, err
		}
		file, err := b.Take(state.FD, "notifications of a worker")
		if err != nil {
			return nil, err
		}
		defer file.Close()
		conn, err := net.FilePacketConn(file)
		if err != nil {
			return nil, fmt.Errorf("sdnotify: %w", err)
		}
		socket, ok := conn.(*net.UnixConn)
		if !ok || strings.ContainsRune(state.Name, 0) || state.Name == "" {
			conn.Close()
			return nil, errSaved
		}
		r := newReceiver(socket, state.Name, 0)
		r.pid = pid
		r.said = supervisor.Said{Status: shown([]byte(state.Status)), Pings: state.Pings}
		close(r.ready)
		if state.Stopping {
			close(r.stopping)
		}
		return r, nil
	}
}
