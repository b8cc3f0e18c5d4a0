package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/supervisor"
)

// errForced: somebody did not want to wait.
var errForced = errors.New("stopped at once by a second signal")

// sameStop is how long after the first one a signal that stops is the same one, which came by another way: timeout(1) and
// wrappers such as npm send it to a process and to its group, and a terminal sends it to all of them. On a busy machine the
// second comes late. A person who presses Ctrl-C twice within that time has to press it once more.
const sameStop = time.Second

// stops tells what a signal that stops means: to begin to stop, to accept no more, to stop at once, or nothing new.
type stops struct {
	delay time.Duration // for which the first one leaves all as it is
	began time.Time
	cut   bool      // by the second one
	last  time.Time // when a signal meant something new
}

type stopWish int

const (
	stopBegin stopWish = iota
	stopCut
	stopSame
	stopAtOnce
)

func (s *stops) hear(sig os.Signal, now time.Time) stopWish {
	switch {
	case s.began.IsZero():
		s.began, s.last = now, now
		return stopBegin
	case sig == unix.SIGHUP, now.Sub(s.last) < sameStop: // a terminal that is closed is no impatience
		return stopSame
	case !s.cut && now.Sub(s.began) < s.delay+sameStop: // which may be over since a moment ago
		s.cut, s.last = true, now
		return stopCut
	default:
		return stopAtOnce
	}
}

// handleSignals turns signals into actions until ctx ends. attended: standard input is a terminal. What it has not acted
// on when another program takes the place of this one, and that this one is to stop, is for the next one.
func handleSignals(ctx context.Context, signals *reexec.Signals, attended bool, m *master.Master, next *successor, log hclog.Logger, kill context.CancelCauseFunc) {
	stopping := stops{delay: m.StopDelay()}
	for {
		received := signals.Next(ctx)
		if received == nil {
			return
		}
		sig := received.Signal
		log.Debug("signal received", "signal", sig.String())
		switch sig {
		case unix.SIGUSR2:
			go reload(log, m, received.Done)
			continue
		case unix.SIGUSR1:
			next.access.reopen()
			received.Done()
			continue
		case unix.SIGTTIN:
			report(log, m.ScaleBy(1))
			received.Done()
			continue
		case unix.SIGTTOU:
			report(log, m.ScaleBy(-1))
			received.Done()
			continue
		case unix.SIGHUP:
			received.Done()
			if !attended {
				go next.take(ctx, func() {})
				continue
			}
		}
		switch stopping.hear(sig, time.Now()) {
		case stopBegin:
			if sig == unix.SIGHUP {
				log.Info("the terminal is closed (SIGHUP); to upgrade where standard input is a terminal say handfast upgrade")
			}
			m.Stop()
		case stopCut:
			log.Info("accepting no more, by a second signal")
			m.EndStopDelay()
		case stopSame:
			log.Debug("the same signal by another way", "signal", sig.String(), "within", sameStop.String())
		case stopAtOnce:
			kill(errForced)
			return
		}
	}
}

// reload begins one. How it ends is logged by the supervisor.
func reload(log hclog.Logger, m *master.Master, done func()) {
	_, _, err := m.StartReload()
	done()
	if errors.Is(err, supervisor.ErrStopped) {
		log.Warn("no reload: stopping")
	}
}

func report(log hclog.Logger, err error) {
	if err != nil {
		log.Warn("number of slots not changed", "err", err)
	}
}
