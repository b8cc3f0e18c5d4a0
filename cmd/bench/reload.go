package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

var reloadFigures = []column{
	{of: failures}, {of: rate}, {of: latency50}, {of: latency99}, {of: latency999}, {of: slowest}, {of: replacing},
}

// reloadWithin bounds a work with a reload: readyTimeout for the new workers, and
// as much again for the old ones to leave.
const reloadWithin = 2 * readyTimeout

// reloadUnderLoad has the workers replaced in the middle of a load of short
// connections.
func reloadUnderLoad(ctx context.Context, s *stage) (sample, error) {
	if err := s.warmUp(ctx, shortExchange); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	l := s.load(shortExchange, reloadWithin)
	l.until = over
	var result loadResult
	var loadErr error
	ended := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(ended)
		result, loadErr = l.run(ctx)
	}()
	pause(ctx, s.duration/2)
	took, err := s.reloadWorkers()
	pause(ctx, s.duration/2)
	close(over)
	<-ended
	lasted := time.Since(begin)
	if err != nil {
		return nil, err
	}
	if loadErr != nil {
		return nil, loadErr
	}
	s.note(result.err)
	return result.withLatencies(sample{
		rate:      float64(len(result.latencies)) / lasted.Seconds(),
		slowest:   millis(percentile(result.latencies, 1)),
		failures:  float64(result.failed),
		replacing: took.Seconds(),
	}), nil
}

// reloadWorkers returns when all that answer are new.
func (s *stage) reloadWorkers() (took time.Duration, err error) {
	old := slices.Clone(s.workerPIDs)
	begin := time.Now()
	if err := s.peer.reload(s); err != nil {
		return 0, fmt.Errorf("reload: %w", err)
	}
	err = s.replaced(old)
	return time.Since(begin), err
}

// replaced waits until none of the old workers answers. Enough clients are asked
// for each worker to have some.
func (s *stage) replaced(old []int) error {
	asked := 20 * s.workers
	return s.until(func(ctx context.Context) error {
		seen := map[int]bool{}
		for client := range asked {
			pid, err := s.ask(ctx, client%s.clients, client)
			if err != nil {
				return err
			}
			if slices.Contains(old, pid) {
				return fmt.Errorf("worker %d is not replaced", pid)
			}
			seen[pid] = true
		}
		if len(seen) < s.workers {
			return fmt.Errorf("%d of %d workers answered", len(seen), s.workers)
		}
		return nil
	})
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
