package supervisor

import (
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
)

// emit reports a change: first to Config.OnEventInLoop, then, without waiting for either, to the log and to Config.OnEvent.
func (s *Supervisor) emit(e Event) {
	if s.cfg.OnEventInLoop != nil {
		s.cfg.OnEventInLoop(e)
	}
	s.lines.add(func() { s.logEvent(e) })
	if s.cfg.OnEvent != nil {
		s.events.add(func() { s.cfg.OnEvent(e) })
	}
}

// logLater logs without making the caller wait for the log.
func (s *Supervisor) logLater(level hclog.Level, message string, args ...any) {
	s.lines.add(func() { s.log.Log(level, message, args...) })
}

func (s *Supervisor) logEvent(e Event) {
	where := []any{"slot", e.Slot, "pid", e.PID, "generation", e.Generation}
	switch e.Kind {
	case WorkerStarted:
		s.log.Debug("worker started", where...)
	case WorkerStartFailed:
		s.log.Error("worker cannot be started", "slot", e.Slot, "generation", e.Generation, "err", e.Err)
	case WorkerReady:
		s.log.Info("worker ready", where...)
	case WorkerNotReady:
		s.log.Error("worker is not ready in time; it must accept connections or say ready", withWords(slices.Concat(where, []any{"timeout", s.cfg.ReadyTimeout.String()}, s.cfg.LogNotReady), e)...)
	case WorkerLeft:
		level := hclog.Info
		if e.Failed() {
			level = hclog.Warn
		}
		fields := append(slices.Clone(where), "err", e.Err)
		if e.Failed() {
			fields = withWords(fields, e)
		}
		s.log.Log(level, "worker takes no more connections", fields...)
	case WorkerHung:
		s.log.Warn("worker does not answer the watchdog", withWords(append(where, "since", e.Silent.UTC().Format(time.RFC3339Nano), "replaced", e.Replaced), e)...)
	case WorkerAnswers:
		s.log.Info("worker answers the watchdog again", where...)
	case WorkerDraining:
		s.log.Debug("worker drains", where...)
	case WorkerTerminated:
		s.log.Info("worker sent SIGTERM", where...)
	case WorkerKilled:
		s.log.Warn("worker sent SIGKILL", where...)
	case WorkerExited:
		level, bad := hclog.Info, e.Failed() || e.Was == Lingering && e.Exit != Exit{} // with what its clients came back to
		if bad {
			level = hclog.Warn
		}
		fields := append(slices.Clone(where), "exit", e.Exit.String())
		if bad {
			fields = withWords(fields, e)
		}
		s.log.Log(level, "worker exited", fields...)
		s.logRest(e, where)
	case WorkerStandby:
		s.log.Debug("worker stands by, while its successor is on probation", where...)
	case WorkerLingering:
		s.log.Info("worker lingers: it was replaced, and clients may come back to it", append(where, "until", e.Until.UTC().Format(time.RFC3339Nano), "at_most", s.drainTimeout(e.Seat).String(), "change_with", lingerFlags)...)
	case WorkerRestored:
		s.log.Info("worker is back in its slot, since its successor has failed on probation", where...)
	case WorkerUnhealthy:
		s.log.Warn("worker is not healthy", withWords(append(where, "failures", s.cfg.Health.Failures, "err", e.Err, "replaced", e.Replaced), e)...)
	case WorkerHealthy:
		s.log.Info("worker is healthy again", where...)
	case WorkerRecycled:
		s.log.Info("worker is recycled: another one takes its place when it is ready", append(where, "reason", e.Err)...)
	case GaveUp:
		s.log.Error("workers keep dying young: giving up", withWords([]any{"slot", e.Slot, "generation", e.Generation, "in_a_row", s.cfg.MaxRestarts + 1, "err", e.Err, "change_with", "--max-restarts, --min-uptime"}, e)...)
	case WorkerGone:
		s.log.Info("processes that the worker left behind have ended", where...)
	case Reloading:
		s.log.Info("reload started", "generation", e.Generation)
	case Reloaded:
		s.log.Info("reload finished", "generation", e.Generation)
	case ReloadFailed:
		s.log.Error("reload failed", "generation", e.Generation, "err", e.Err)
	case Scaled:
		s.log.Info("number of slots changed", "slots", e.Slots)
	}
}

// withWords adds what a worker wrote last, if that is known.
func withWords(fields []any, e Event) []any {
	if e.LastWords != "" {
		fields = append(fields, "last_words", e.LastWords)
	}
	return fields
}

// logRest logs which processes a worker has left behind. For one that drains that is no surprise.
func (s *Supervisor) logRest(e Event, where []any) {
	where = append(where, "pids", e.Rest)
	switch {
	case len(e.Rest) == 0:
	case e.Was == Starting || e.Was == Serving || e.Was == Lingering:
		s.log.Warn("worker has left processes behind, which are told to finish, and then killed", append(where, "timeout", s.cfg.KillTimeout.String())...)
	default:
		s.log.Info("worker has left processes behind, which finish", where...)
	}
}
