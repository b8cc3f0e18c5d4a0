package master

import (
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// logOutcome writes a line of the access log.
func (m *Master) logOutcome(o balancer.Outcome) {
	fields := make([]any, 0, 14)
	peer := "unix"
	if o.Peer.IsValid() {
		peer = o.Peer.String()
	}
	fields = append(fields, "peer", peer)
	if o.Client.IsValid() {
		fields = append(fields, "client", o.Client.String())
	}
	if o.Slot != balancer.NoSlot {
		fields = append(fields, "slot", o.Slot)
	}
	switch {
	case o.Worker != nil:
		fields = append(fields, "pid", m.pidOf(o), "parked", o.Parked.Seconds(), "result", "handed_off")
	case o.Err == clientip.ErrGone:
		fields = append(fields, "parked", o.Parked.Seconds(), "result", "gone")
	default:
		fields = append(fields, "parked", o.Parked.Seconds(), "result", "refused", "reason", o.Reason())
	}
	m.access.Info("connection", fields...)
}

// pidOf returns the process that has a connection; 0 if it has ended meanwhile.
func (m *Master) pidOf(o balancer.Outcome) int {
	snapshot, _ := m.supervisor.Snapshot()
	if o.Slot >= 0 && o.Slot < len(snapshot.Slots) {
		// It may have taken the slot over since the snapshot.
		sl := &snapshot.Slots[o.Slot]
		for _, w := range []*supervisor.WorkerStatus{sl.Worker, sl.Next, sl.Standby} {
			if w != nil && known(w.Link).worker == o.Worker {
				return w.PID
			}
		}
	}
	for _, w := range snapshot.Draining {
		if known(w.Link).worker == o.Worker {
			return w.PID
		}
	}
	return 0
}
