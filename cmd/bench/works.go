package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// work is something to do to a peer, and the table that comes of it.
type work struct {
	name    string
	title   string
	method  string
	peers   []string // whom it compares
	columns []column
	do      func(context.Context, *stage) (sample, error)
}

func (w work) String() string { return w.name }

// among returns those of the peers that the work compares.
func (w work) among(peers []peer) []peer {
	var compared []peer
	for _, p := range peers {
		if slices.Contains(w.peers, p.name) {
			compared = append(compared, p)
		}
	}
	return compared
}

// Peers that others are compared with.
const (
	theLimit     = "reuseport"
	theSteered   = "handfast-kernel"
	theHandoff   = "handfast"
	theStandard  = "haproxy-tcp"
	theHTTPProxy = "nginx-http"

	theNodeCluster  = "node-cluster"
	theStickyListen = "sticky-listen"
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
		peers: []string{theLimit, theSteered, theHandoff, theStandard, "nginx-stream"},
		columns: slices.Concat([]column{
			{of: rate, over: theLimit}, {of: totalCPU, over: theLimit}, {of: balancerCPU, over: theStandard},
		}, shortFigures),
		do: func(ctx context.Context, s *stage) (sample, error) {
			return shortConnections(ctx, s, shortExchange)
		},
	},
	{
		name:  "held",
		title: "Connections held open",
		method: "Each connection is switched to another protocol, as a WebSocket is, and stays open and idle. " +
			"Memory is the anonymous memory of the processes (Pss_Anon) before and after; the kernel's own, " +
			"which proxies need for two sockets instead of one, comes on top.",
		peers: []string{theLimit, theHandoff, theStandard, "nginx-stream"},
		columns: []column{
			{of: added, over: theStandard},
			{of: connections}, {of: added}, {of: addedTotal}, {of: balancerMem}, {of: workerAdded}, {of: failures},
		},
		do: heldConnections,
	},
	{
		name:  "forwarded",
		title: "Short connections behind a proxy",
		method: "As the short connections, but the load plays a proxy that has ended TLS: each request has the head of a " +
			"browser's and names one of the clients in X-Forwarded-For. All but reuseport and plain handfast place the " +
			"connection by that name. The request is sent as soon as the connection is open, so it mostly is there when the balancer looks.",
		peers: []string{theLimit, theHandoff, "handfast-behind-proxy", theHTTPProxy, "haproxy-http"},
		columns: slices.Concat([]column{
			{of: balancerCPU, over: theHandoff}, {of: balancerCPU, over: theHTTPProxy}, {of: rate, over: theLimit},
		}, shortFigures),
		do: func(ctx context.Context, s *stage) (sample, error) {
			return shortConnections(ctx, s, forwardedExchange(s.clients))
		},
	},
	{
		name:  "node",
		title: "Short connections with Node workers",
		method: "As the short connections, but behind every peer are workers that run the same Node program, an http server. " +
			"Where Node balances, the balancer is the process that started the workers.",
		peers: names(nodePeers),
		columns: slices.Concat([]column{
			{of: balancerCPU, over: theStickyListen}, {of: rate, over: theStickyListen}, {of: rate, over: theNodeCluster},
		}, shortFigures),
		do: func(ctx context.Context, s *stage) (sample, error) {
			return shortConnections(ctx, s, shortExchange)
		},
	},
}

// shortFigures are what is shown of short connections after the ratios.
var shortFigures = []column{
	{of: rate}, {of: totalCPU}, {of: balancerCPU}, {of: workerCPU},
	{of: latency50}, {of: latency99}, {of: latency999}, {of: failures}, {of: balancerMem},
}

// Exchanges of the works.
var (
	shortExchange = exchange{
		requests: [][]byte{[]byte("GET /short HTTP/1.1\r\nHost: bench\r\n\r\n")},
		prefix:   []byte("HTTP/1.1 200 "),
		suffix:   []byte("\r\n\r\nok\n"),
	}
	heldExchange = exchange{
		requests: [][]byte{[]byte("GET /held HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: held\r\n\r\n")},
		prefix:   []byte("HTTP/1.1 101 "),
		suffix:   []byte("\r\n\r\n"),
	}
)

// maxForwarded is how many addresses are set apart for benchmarks (RFC 2544,
// 198.18.0.0/15). More clients than that share them.
const maxForwarded = 1 << 17

// forwardedExchange has a request of each client, as a proxy passes it on.
func forwardedExchange(clients int) exchange {
	x := shortExchange
	x.requests = make([][]byte, min(clients, maxForwarded))
	for i := range x.requests {
		x.requests[i] = fmt.Appendf(nil, "GET /short HTTP/1.1\r\n"+
			"Host: bench.example\r\n"+
			"X-Forwarded-For: %s\r\n"+
			"X-Forwarded-Proto: https\r\n"+
			"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"+
			"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"+
			"Accept-Language: en-US,en;q=0.5\r\n"+
			"Accept-Encoding: gzip, deflate, br\r\n\r\n", forwardedAddress(i))
	}
	return x
}

// forwardedAddress is the i-th client's before the proxy. Neighbours differ in the
// third byte, since nginx's ip_hash looks no further.
func forwardedAddress(i int) netip.Addr {
	i %= maxForwarded
	return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i), byte(i >> 8)})
}

const (
	warmUp     = 300 * time.Millisecond // of load before anything is measured
	settling   = 500 * time.Millisecond // of rest before memory is read
	holdWithin = 60 * time.Second       // for opening what is held
)

func (s *stage) load(x exchange, d time.Duration) load {
	return load{to: s.address, exchange: x, clients: s.clients, concurrency: s.concurrency, duration: d}
}

func shortConnections(ctx context.Context, s *stage, x exchange) (sample, error) {
	if _, err := s.load(x, warmUp).run(ctx); err != nil {
		return nil, err
	}
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	result, err := s.load(x, s.duration).run(ctx)
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
	if _, err := s.load(shortExchange, warmUp).run(ctx); err != nil {
		return nil, err
	}
	time.Sleep(settling)
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	hold := s.load(heldExchange, holdWithin)
	hold.total, hold.keep = s.canHold(), true
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
