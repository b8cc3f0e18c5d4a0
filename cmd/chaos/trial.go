package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// calm is how long nothing is done at the end.
const calm = 8 * time.Second

// try runs one variant and checks what there was.
func (s *settings) try(ctx context.Context, variant string) (r report) {
	h, log, missing, err := s.play(ctx, variant)
	if err != nil {
		r.failures = append(r.failures, err.Error())
	}
	if h == nil {
		r.summary = "not tried"
		return r
	}
	began := time.Now()
	faults := history.Check(h)
	r.summary = fmt.Sprintf("%s; %d faults; checked in %v", summary(h), len(faults), time.Since(began).Round(time.Millisecond))
	if len(missing) > 0 {
		r.summary += "; left out: " + strings.Join(missing, "; ")
	}
	r.failures = append(r.failures, tell(faults)...)
	if strings.Contains(log, "panic:") || strings.Contains(log, "DATA RACE") {
		r.failures = append(r.failures, "the log has a panic or a race")
	}
	if len(r.failures) > 0 {
		r.kept, err = keep(s, variant, h, log)
		if err != nil {
			r.failures = append(r.failures, err.Error())
		}
	}
	return r
}

// play runs one variant. The history is nil if there is none.
func (s *settings) play(ctx context.Context, variant string) (h *history.History, log string, missing []string, err error) {
	route, link, _ := strings.Cut(variant, "/")
	name := route + "-" + link
	dir := filepath.Join(s.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, "", nil, err
	}
	disk, noDisk := newDisk(filepath.Join(dir, "disk"))
	if noDisk != nil {
		missing = append(missing, fmt.Sprintf("full disk (%v)", noDisk))
	} else {
		defer disk.unmount()
	}
	memory, noMemory := newMemory(fmt.Sprintf("handfast-chaos-%d-%s", os.Getpid(), name))
	if noMemory != nil {
		missing = append(missing, fmt.Sprintf("short memory (%v)", noMemory))
	} else {
		defer memory.remove()
	}
	if !s.setClock {
		missing = append(missing, "jumps of the clock (-set-clock)")
	}
	m, err := startMaster(s, route, link, dir, disk, memory)
	if err != nil {
		return nil, "", missing, err
	}
	record := &recorder{began: time.Now()}
	record.history.Terms = terms(s.seed, route, link)
	watcher := newWatcher(record, m.pid())
	err = m.await(func(s *status) bool { return s.Ready })
	if err == nil {
		d := &disturber{recorder: record, dice: dice(s.seed, variant, 0), master: m, watcher: watcher, disk: disk, memory: memory,
			setClock: s.setClock && variant == variants[0], noUpgrade: variant == "master/any", slots: slotsAtFirst,
			tell: func(format string, args ...any) {
				if s.verbose {
					fmt.Printf("%-14s "+format+"\n", append([]any{variant}, args...)...)
				}
			}}
		if noDisk != nil {
			d.disk = nil
		}
		s.disturb(ctx, d, variant)
	}
	end := history.Deed{What: history.End, From: record.now()}
	stopped := m.stop()
	if left := noneLeft(watcher); stopped == nil { // foreign ones serve on when the master was killed
		stopped = left
	}
	if end.To = record.now(); stopped != nil {
		end.Err = stopped.Error()
	}
	record.deed(end)
	record.history.Processes = watcher.stop()
	text, _ := os.ReadFile(filepath.Join(disk.dir, logFile))
	return &record.history, string(text), missing, err
}

// noneLeft ends the workers that have outlived the master, if there are any.
func noneLeft(w *watcher) error {
	deadline := time.Now().Add(killTimeout + calm)
	for len(w.alive()) > 0 {
		if time.Now().After(deadline) {
			left := w.alive()
			for _, p := range left {
				w.signal(p, 9)
			}
			return fmt.Errorf("%d workers have outlived handfast", len(left))
		}
		time.Sleep(watchEvery)
	}
	return nil
}

// disturb has clients come, and disturbs them until the time is over, or handfast has ended. Then all is calm for a while.
func (s *settings) disturb(ctx context.Context, d *disturber, variant string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.master.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	var clients sync.WaitGroup
	for i := range s.clients {
		dice := dice(s.seed, variant, uint64(i)+1)
		from := netip.AddrFrom4([4]byte{127, byte(1 + dice.IntN(250)), byte(dice.IntN(256)), byte(1 + dice.IntN(250))})
		c := &client{recorder: d.recorder, address: d.master.address, from: from, dice: dice}
		clients.Go(func() { c.run(ctx) })
	}
	d.run(ctx, time.Now().Add(s.length-calm))
	d.note(history.Deed{What: history.Calm, From: d.now()}, nil)
	select {
	case <-time.After(calm):
	case <-ctx.Done():
	}
	cancel()
	clients.Wait()
}

// dice are those of a part of a trial. All parts have their own, so that one does not depend on how fast another one is.
func dice(seed uint64, variant string, part uint64) *rand.Rand {
	sum := fnv.New64a()
	io.WriteString(sum, variant)
	return rand.New(rand.NewPCG(seed, sum.Sum64()+part))
}

// summary says how much there was.
func summary(h *history.History) string {
	requests, status, cut := 0, make(map[int]int), 0
	for _, c := range h.Connections {
		requests += len(c.Requests)
		for _, r := range c.Requests {
			if r.Err != "" {
				cut++
			} else {
				status[r.Status]++
			}
		}
	}
	done := make(map[history.What]int)
	for _, d := range h.Deeds {
		done[d.What]++
	}
	var what []string
	for w, n := range done {
		if w != history.End && w != history.Calm {
			what = append(what, fmt.Sprintf("%d %s", n, w))
		}
	}
	slices.Sort(what)
	text := fmt.Sprintf("%d connections, %d requests, %d without an answer", len(h.Connections), requests, cut)
	for code, n := range status {
		if code != 200 {
			text += fmt.Sprintf(", %d with %d", n, code)
		}
	}
	return fmt.Sprintf("%s; %d workers; %s", text, len(h.Processes), strings.Join(what, ", "))
}

// keep writes what is known of a trial that failed.
func keep(s *settings, variant string, h *history.History, log string) (folder string, err error) {
	folder = filepath.Join(s.out, fmt.Sprintf("chaos-%d-%s", s.seed, strings.ReplaceAll(variant, "/", "-")))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(folder, logFile), []byte(log), 0o644); err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(folder, historyFile))
	if err != nil {
		return "", err
	}
	if err := h.Write(f); err != nil {
		f.Close()
		return "", err
	}
	return folder, f.Close()
}
