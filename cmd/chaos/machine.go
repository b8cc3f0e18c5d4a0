package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/chaos/history"
)

func (d *disturber) fillDisk() {
	long := d.milliseconds(500, 3000)
	if d.disk == nil {
		return
	}
	d.beside.Go(func() {
		d.lastOfDisk.Lock()
		defer d.lastOfDisk.Unlock()
		deed := history.Deed{What: history.Disk, From: d.now()}
		err := d.disk.fill()
		time.Sleep(long)
		d.disk.free()
		d.note(deed, err)
	})
}

// shorten leaves workers a few MiB more than they have, in which a reload has no room.
func (d *disturber) shorten() {
	long, room := d.milliseconds(500, 2500), d.dice.IntN(4<<20)
	if d.memory == nil || d.noMemory.Swap(true) {
		return
	}
	d.beside.Go(func() {
		defer d.noMemory.Store(false)
		deed, before := history.Deed{What: history.Memory, From: d.now()}, d.memory.killed()
		err := d.memory.tighten(room)
		time.Sleep(long)
		if e := d.memory.unlimited(); err == nil {
			err = e
		}
		deed.Kills = d.memory.killed() - before
		d.note(deed, err)
	})
}

// jump sets the machine's clock to another time, and back.
func (d *disturber) jump() {
	long := d.milliseconds(200, 3000)
	by := time.Duration(d.dice.IntN(int(200*time.Hour))) - 100*time.Hour
	if !d.setClock {
		return
	}
	deed, began := history.Deed{What: history.Clock, From: d.now()}, time.Now()
	set := func(at time.Time) error {
		ts := unix.NsecToTimespec(at.UnixNano())
		return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
	}
	err := set(began.Add(by))
	time.Sleep(long)
	if e := set(began.Add(time.Since(began))); err == nil { // which the clock that never jumps measures
		err = e
	}
	d.note(deed, err)
}
