package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// reload asks for one, by the admin socket or by a signal, and leaves it to go on. Often workers that begin to drain then are stopped for a while: they have
// much to decide, and clients that do not know of it.
func (d *disturber) reload() {
	bySignal, holds, long := d.dice.IntN(4) == 0, d.dice.IntN(2) == 0, d.milliseconds(1000, 2500)
	if d.busy.Swap(true) {
		return
	}
	d.beside.Go(func() {
		defer d.busy.Store(false)
		generation := d.reloadNow(bySignal)
		for _, p := range d.watcher.alive() {
			if holds && p.Generation < generation {
				d.beside.Go(func() { d.hold(p, long) })
			}
		}
	})
}

// reloadNow returns the generation of a reload that has succeeded, or 0.
func (d *disturber) reloadNow(bySignal bool) (generation int) {
	deed := history.Deed{What: history.Reload, From: d.now()}
	var err error
	if bySignal {
		deed.Generation, err = d.reloadBySignal()
	} else {
		var last struct {
			Generation  int
			Step, Error string
		}
		err = d.master.ask("POST", "/v1/reload", "{}", &last)
		if deed.Generation = last.Generation; err == nil && last.Step != "finished" {
			err = fmt.Errorf("%s: %s", last.Step, last.Error)
		}
	}
	d.note(deed, err)
	if err != nil {
		return 0
	}
	return deed.Generation
}

func (d *disturber) reloadBySignal() (generation int, err error) {
	var before int
	err = d.master.await(func(s *status) bool {
		if s.Reload != nil {
			before = s.Reload.Generation
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	d.master.cmd.Process.Signal(unix.SIGUSR2)
	var failure string
	err = d.master.await(func(s *status) bool {
		if s.Reload == nil || s.Reload.Generation == before || s.Reload.Ended == nil {
			return false
		}
		generation, failure = s.Reload.Generation, s.Reload.Error
		return true
	})
	if err == nil && failure != "" {
		err = fmt.Errorf("failed: %s", failure)
	}
	return generation, err
}

// replace gives a slot another worker of the same generation.
func (d *disturber) replace() {
	slot := d.dice.IntN(1<<16) % d.slots
	if d.busy.Swap(true) {
		return
	}
	d.beside.Go(func() {
		defer d.busy.Store(false)
		deed := history.Deed{What: history.Replace, From: d.now(), Slot: slot}
		var last struct{ Step, Error string }
		err := d.master.ask("POST", "/v1/drain", fmt.Sprintf(`{"slot": %d}`, slot), &last)
		if err == nil && last.Step != "finished" {
			err = fmt.Errorf("%s: %s", last.Step, last.Error)
		}
		d.note(deed, err)
	})
}

func (d *disturber) scale() {
	n := leastSlots + d.dice.IntN(mostSlots-leastSlots+1)
	deed := history.Deed{What: history.Scale, From: d.now(), Slots: n}
	err := d.master.ask("POST", "/v1/scale", fmt.Sprintf(`{"slots": %d}`, n), new(struct{}))
	if err == nil {
		d.slots = n
		err = d.master.await(func(s *status) bool { return s.inUse(n) })
	}
	d.note(deed, err)
}

// upgrade replaces the master's program by itself. It is refused while a reload goes on.
func (d *disturber) upgrade() {
	bySignal := d.dice.IntN(2) == 0
	if d.noUpgrade || d.busy.Swap(true) {
		return
	}
	defer d.busy.Store(false)
	var before, after status
	err := d.master.await(func(s *status) bool { before = *s; return true })
	deed := history.Deed{What: history.Upgrade, From: d.now()}
	if err == nil && bySignal {
		d.master.cmd.Process.Signal(unix.SIGHUP)
	} else if err == nil {
		err = d.master.ask("POST", "/v1/upgrade", "{}", new(struct{}))
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
			err = nil // the connection ends with the program, and status says which one runs
		}
	}
	if err == nil {
		err = d.master.await(func(s *status) bool {
			after = *s
			return s.Upgrade.Count > before.Upgrade.Count || s.Upgrade.Error != "" && (before.Upgrade.At == nil || !s.Upgrade.At.Equal(*before.Upgrade.At))
		})
	}
	if err == nil && after.Upgrade.Error != "" {
		err = fmt.Errorf("failed: %s", after.Upgrade.Error)
	}
	d.note(deed, err)
}

// breakWorkers tries to reload while each worker that is started ends at once.
func (d *disturber) breakWorkers() {
	if d.busy.Swap(true) {
		return
	}
	defer d.busy.Store(false)
	deed := history.Deed{What: history.Broken, From: d.now()}
	err := os.WriteFile(d.master.broken, nil, 0o600)
	if err == nil {
		d.reloadNow(false)
		err = os.Remove(d.master.broken)
	}
	d.note(deed, err)
}
