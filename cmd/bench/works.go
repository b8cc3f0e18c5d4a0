package main

import (
	"context"
	"time"
)

// work is something to do to a peer, and the table that comes of it.
type work struct {
	name    string
	title   string
	method  string
	columns []column
	do      func(context.Context, *stage) (sample, error)
}

func (w work) String() string { return w.name }

// Peers that others are compared with.
const (
	theLimit    = "reuseport"
	theStandard = "haproxy-tcp"
)

// The names of figures.
const (
	rate        = "conn/s"
	balancerCPU = "balancer µs/conn"
	workerCPU   = "workers µs/conn"
	totalCPU    = "total µs/conn"
	latency50   = "p50 ms"
	latency99   = "p99 ms"
	latency999  = "p99.9 ms"
	failures    = "failed"
	balancerMem = "balancer MiB"
	connections = "connections"
	added       = "balancer +bytes/conn"
	addedTotal  = "balancer +MiB"
	workerAdded = "workers +bytes/conn"
)

// works is the table of works.
var works = []work{
	{
		name:  "short",
		title: "Short connections",
		method: "Each connection carries one HTTP request. Latency is from connect to the last byte of the answer; " +
			"the client then resets the connection. Processor time is what the processes' own clocks say, user and kernel, " +
			"divided by the connections served; the total is that of balancer, workers and load generator, and hardly " +
			"depends on what else the machine does.",
		columns: []column{
			{of: rate, over: theLimit}, {of: totalCPU, over: theLimit}, {of: balancerCPU, over: theStandard},
			{of: rate}, {of: totalCPU}, {of: balancerCPU}, {of: workerCPU},
			{of: latency50}, {of: latency99}, {of: latency999}, {of: failures}, {of: balancerMem},
		},
		do: shortConnections,
	},
	{
		name:  "held",
		title: "Connections held open",
		method: "Each connection is switched to another protocol, as a WebSocket is, and stays open and idle. " +
			"Memory is the anonymous memory of the processes (Pss_Anon) before and after; the kernel's own, " +
			"which proxies need for two sockets instead of one, comes on top.",
		columns: []column{
			{of: added, over: theStandard},
			{of: connections}, {of: added}, {of: addedTotal}, {of: balancerMem}, {of: workerAdded}, {of: failures},
		},
		do: heldConnections,
	},
}

// Exchanges of the works.
var (
	shortExchange = exchange{
		request: []byte("GET /short HTTP/1.1\r\nHost: bench\r\n\r\n"),
		prefix:  []byte("HTTP/1.1 200 "),
		suffix:  []byte("\r\n\r\nok\n"),
	}
	heldExchange = exchange{
		request: []byte("GET /held HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: held\r\n\r\n"),
		prefix:  []byte("HTTP/1.1 101 "),
		suffix:  []byte("\r\n\r\n"),
	}
)

const (
	warmUp     = 300 * time.Millisecond // of load before anything is measured
	settling   = 500 * time.Millisecond // of rest before memory is read
	holdWithin = 60 * time.Second       // for opening what is held
)

func (s *stage) short(d time.Duration) load {
	return load{to: s.address, exchange: shortExchange, clients: s.clients, concurrency: s.concurrency, duration: d}
}

func shortConnections(ctx context.Context, s *stage) (sample, error) {
	if _, err := s.short(warmUp).run(ctx); err != nil {
		return nil, err
	}
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	result, err := s.short(s.duration).run(ctx)
	if err != nil {
		return nil, err
	}
	after, err := s.usage()
	if err != nil {
		return nil, err
	}
	s.note(result.err)
	served := float64(len(result.latencies))
	perConn := func(spent time.Duration) float64 { return float64(spent) / 1e3 / served }
	ms := func(part float64) float64 { return float64(percentile(result.latencies, part)) / 1e6 }
	return sample{
		rate:        float64(result.inTime) / s.duration.Seconds(),
		balancerCPU: perConn(after.balancer - before.balancer),
		workerCPU:   perConn(after.workers - before.workers),
		totalCPU:    perConn(after.total() - before.total()),
		latency50:   ms(0.5),
		latency99:   ms(0.99),
		latency999:  ms(0.999),
		failures:    float64(result.failed),
		balancerMem: float64(after.balancerMem) / (1 << 20),
	}, nil
}

func heldConnections(ctx context.Context, s *stage) (sample, error) {
	if _, err := s.short(warmUp).run(ctx); err != nil {
		return nil, err
	}
	time.Sleep(settling)
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	hold := s.short(holdWithin)
	hold.exchange, hold.total, hold.keep = heldExchange, s.canHold(), true
	result, err := hold.run(ctx)
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
	s.note(result.err)
	held := float64(len(result.latencies))
	more := float64(after.balancerMem - before.balancerMem)
	return sample{
		connections: held,
		added:       more / held,
		addedTotal:  more / (1 << 20),
		balancerMem: float64(after.balancerMem) / (1 << 20),
		workerAdded: float64(after.workersMem-before.workersMem) / held,
		failures:    float64(result.failed + disturbed),
	}, nil
}
