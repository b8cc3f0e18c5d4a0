package main

import (
	"context"
	"time"
)

var heldExchange = exchange{
	requests: [][]byte{[]byte("GET /held HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: held\r\n\r\n")},
	prefix:   []byte("HTTP/1.1 101 "),
	suffix:   []byte("\r\n\r\n"),
}

const (
	settling   = 500 * time.Millisecond // of rest before memory is read
	holdWithin = 60 * time.Second       // for opening what is held
)

// hold opens as many connections as can be held. Whoever calls it calls closeKept.
func (s *stage) hold(ctx context.Context, x exchange) (loadResult, error) {
	return s.holdSome(ctx, x, s.canHold())
}

// holdSome is hold of so many.
func (s *stage) holdSome(ctx context.Context, x exchange, total int) (loadResult, error) {
	hold := s.load(x, holdWithin)
	hold.total, hold.keep = total, true
	held, err := hold.run(ctx)
	s.note(held.err)
	return held, err
}

func heldConnections(ctx context.Context, s *stage) (sample, error) {
	if err := s.warmUp(ctx, shortExchange); err != nil {
		return nil, err
	}
	time.Sleep(settling)
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	result, err := s.hold(ctx, heldExchange)
	if err != nil {
		result.closeKept()
		return nil, err
	}
	time.Sleep(settling)
	after, err := s.usage()
	disturbed := result.closeKept()
	if err != nil {
		return nil, err
	}
	held := float64(len(result.latencies))
	used := after.since(before)
	return sample{
		connections: held,
		added:       float64(used.balancerMem) / held,
		addedTotal:  mebi(used.balancerMem),
		balancerMem: mebi(after.balancerMem),
		workerAdded: float64(used.workersMem) / held,
		failures:    float64(result.failed + disturbed),
	}, nil
}

// crowdedConnections measures short connections while others are held.
func crowdedConnections(ctx context.Context, s *stage) (sample, error) {
	held, err := s.hold(ctx, heldExchange)
	var figures sample
	if err == nil {
		figures, err = shortConnections(ctx, s)
	}
	disturbed := held.closeKept()
	if err != nil {
		return nil, err
	}
	figures[connections] = float64(len(held.latencies))
	figures[failures] += float64(held.failed + disturbed)
	return figures, nil
}
