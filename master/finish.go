package master

import (
	"cmp"
	"net/netip"
	"syscall"

	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/programs"
	"github.com/handfast/handfast/master/supervisor"
)

// ChooseDrainSignal returns the signal that workers which know nothing of us get to finish, where that
// is left to us, by the name that --drain-signal has for it, and why.
func ChooseDrainSignal(command []string) (signal, why string) {
	chosen, why := chooseDrainSignal(command)
	return launch.SignalName(chosen), why
}

func chooseDrainSignal(command []string) (signal syscall.Signal, why string) {
	signal, name, known := programs.DrainSignal(command)
	if known {
		return signal, name + " is known to finish on it"
	}
	if name == "" {
		name = "the program"
	}
	return launch.NoSignal, name + " is not known to finish on a signal: workers get no more connections, and end when their last one has"
}

// chooseDraining decides how workers that know nothing of us are made to finish. asked is 0 where
// that is left to us.
func (m *Master) chooseDraining(asked syscall.Signal) {
	signal, why := chooseDrainSignal(m.command)
	m.drainsTold = signal != launch.NoSignal && (asked == signal || asked == 0)
	m.drainSignal = cmp.Or(asked, signal)
	if asked == 0 && m.kind.foreign {
		m.log.Info("drain signal chosen", "signal", launch.SignalName(signal), "reason", why, "change_with", "--drain-signal")
	}
}

// drain says how a worker that knows nothing of us is made to finish. idle tells whether nobody
// waits for it in a queue; nil: there is none.
func (m *Master) drain(idle func() bool) launch.Drain {
	return launch.Drain{
		Signal: m.drainSignal,
		Idle:   idle,
		Open:   m.holdsUp,
		Busy:   m.connections.Busy,
		Logger: m.log.Named("drain"),
	}
}

// holdsUp tells whether a worker has a connection that it is to be left with. When we stop, what is
// only kept alive does not count.
func (m *Master) holdsUp(pid int) (bool, error) {
	if m.isEnding() {
		return m.connections.Busy(pid)
	}
	return m.connections.Open(pid)
}

// noteLoss says, once, that the signal on which workers should finish ends them at once.
func (m *Master) noteLoss(e supervisor.Event) {
	lost := known(e.Link).lost
	if lost == nil || e.Kind != supervisor.WorkerExited || m.drainsTold || m.lossTold || !lost(e.Exit) {
		return
	}
	m.lossTold = true
	m.log.Warn("worker died of its drain signal at once, with requests that it had not answered", "slot", e.Slot, "pid", e.PID, "generation", e.Generation,
		"signal", launch.SignalName(m.drainSignal), "remedy", "--drain-signal none: it then ends when its last connection has")
}

func ports(addresses []netip.AddrPort) (all []uint16) {
	for _, at := range addresses {
		all = append(all, at.Port())
	}
	return all
}
