package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// disturber does what its dice say. What takes long goes on beside the rest.
type disturber struct {
	*recorder
	dice       *rand.Rand
	master     *master
	watcher    *watcher
	disk       *disk   // nil: none
	memory     *memory // nil: none
	setClock   bool
	noUpgrade  bool
	tell       func(format string, args ...any)
	slots      int
	busy       atomic.Bool // a reload or a replacement is under way
	beside     sync.WaitGroup
	noMemory   atomic.Bool
	lastOfDisk sync.Mutex // one at a time
}

// The least and the most slots.
const (
	leastSlots = 2
	mostSlots  = 5
)

// deeds are what is done, and how often compared with others.
var deeds = []struct {
	what  history.What
	often int
	do    func(*disturber)
}{
	{history.Kill, 25, (*disturber).kill},
	{history.Stop, 12, (*disturber).stopWorker},
	{history.Stop, 3, (*disturber).stopMaster},
	{history.Reload, 16, (*disturber).reload},
	{history.Replace, 6, (*disturber).replace},
	{history.Scale, 9, (*disturber).scale},
	{history.Upgrade, 10, (*disturber).upgrade},
	{history.Broken, 3, (*disturber).breakWorkers},
	{history.Disk, 4, (*disturber).fillDisk},
	{history.Memory, 4, (*disturber).shorten},
	{history.Clock, 8, (*disturber).jump},
	{history.Calm, 8, (*disturber).rest},
}

// run disturbs until a time, and returns when all that it has begun is over.
func (d *disturber) run(ctx context.Context, until time.Time) {
	sum := 0
	for _, deed := range deeds {
		sum += deed.often
	}
	for ctx.Err() == nil && time.Now().Before(until) {
		at, pause := d.dice.IntN(sum), time.Duration(50+d.dice.IntN(900))*time.Millisecond
		i := 0
		for ; at >= deeds[i].often; i++ {
			at -= deeds[i].often
		}
		deeds[i].do(d)
		select {
		case <-time.After(min(pause, time.Until(until))):
		case <-ctx.Done():
		}
	}
	d.beside.Wait()
}

// milliseconds are at least and at most so many.
func (d *disturber) milliseconds(least, most int) time.Duration {
	return time.Duration(least+d.dice.IntN(most-least)) * time.Millisecond
}

// note notes what was done from a time until now.
func (d *disturber) note(deed history.Deed, err error) {
	deed.To = d.now()
	if err != nil {
		deed.Err = err.Error()
	}
	d.deed(deed)
	d.tell("%8.3fs to %8.3fs %s pid=%d slot=%d slots=%d generation=%d kills=%d %s", deed.From.Seconds(), deed.To.Seconds(), deed.What, deed.PID, deed.Slot, deed.Slots, deed.Generation, deed.Kills, deed.Err)
}

// somebody is one of the workers that live.
func (d *disturber) somebody() *process {
	n := d.dice.IntN(1 << 16)
	alive := d.watcher.alive()
	if len(alive) == 0 {
		return nil
	}
	return alive[n%len(alive)]
}

func (d *disturber) kill() {
	if p := d.somebody(); p != nil {
		deed := history.Deed{What: history.Kill, From: d.now(), PID: p.PID}
		d.watcher.signal(p, unix.SIGKILL)
		d.note(deed, nil)
	}
}

func (d *disturber) stopWorker() {
	p, long := d.somebody(), d.milliseconds(100, 3000)
	if d.dice.IntN(6) == 0 {
		long += 5 * time.Second
	}
	if p != nil {
		d.beside.Go(func() { d.hold(p, long) })
	}
}

// hold stops a worker for so long.
func (d *disturber) hold(p *process, long time.Duration) {
	deed := history.Deed{What: history.Stop, From: d.now(), PID: p.PID}
	d.watcher.signal(p, unix.SIGSTOP)
	time.Sleep(long)
	d.watcher.signal(p, unix.SIGCONT)
	d.note(deed, nil)
}

func (d *disturber) stopMaster() {
	deed, long := history.Deed{What: history.Stop, From: d.now()}, d.milliseconds(100, 1500)
	d.master.cmd.Process.Signal(unix.SIGSTOP)
	time.Sleep(long)
	d.master.cmd.Process.Signal(unix.SIGCONT)
	d.note(deed, nil)
}

// rest has everything go well for a while.
func (d *disturber) rest() { time.Sleep(d.milliseconds(500, 2500)) }
