package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// shortFigures are what is shown of short connections after the ratios.
var shortFigures = []column{
	{of: rate}, {of: totalCPU}, {of: balancerCPU}, {of: workerCPU},
	{of: latency50}, {of: latency99}, {of: latency999}, {of: failures}, {of: balancerMem},
}

var shortExchange = exchange{
	requests: [][]byte{[]byte("GET /short HTTP/1.1\r\nHost: bench\r\n\r\n")},
	prefix:   []byte("HTTP/1.1 200 "),
	suffix:   []byte("\r\n\r\nok\n"),
}

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

// forwardedAddress is the i-th client's before the proxy.
func forwardedAddress(i int) netip.Addr {
	i %= maxForwarded
	third, fourth := lastBytes(i)
	return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), third, fourth})
}

// warmUp is how long there is load before anything is measured, or as long as the
// load itself if that is less.
const warmUp = 300 * time.Millisecond

func (s *stage) warmUp(ctx context.Context, x exchange) error {
	_, err := s.load(x, min(warmUp, s.duration)).run(ctx)
	return err
}

func shortConnections(ctx context.Context, s *stage) (sample, error) {
	return measureConnections(ctx, s, shortExchange)
}

func forwardedConnections(ctx context.Context, s *stage) (sample, error) {
	return measureConnections(ctx, s, forwardedExchange(s.clients))
}

// load opens connections for a time from all clients.
func (s *stage) load(x exchange, d time.Duration) load {
	return load{to: s.address, exchange: x, clients: s.clients, concurrency: s.concurrency, duration: d}
}

func measureConnections(ctx context.Context, s *stage, x exchange) (sample, error) {
	if err := s.warmUp(ctx, x); err != nil {
		return nil, err
	}
	var result loadResult
	used, after, err := s.metered(func() (err error) {
		result, err = s.load(x, s.duration).run(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.note(result.err)
	served := float64(len(result.latencies))
	return result.withLatencies(sample{
		rate:        float64(result.inTime) / s.duration.Seconds(),
		balancerCPU: micros(used.balancer) / served,
		workerCPU:   micros(used.workers) / served,
		totalCPU:    micros(used.total()) / served,
		failures:    float64(result.failed),
		balancerMem: mebi(after.balancerMem),
	}), nil
}

// withLatencies adds those of a load to its other figures.
func (r *loadResult) withLatencies(figures sample) sample {
	figures[latency50] = millis(percentile(r.latencies, 0.5))
	figures[latency99] = millis(percentile(r.latencies, 0.99))
	figures[latency999] = millis(percentile(r.latencies, 0.999))
	return figures
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }
func millis(d time.Duration) float64 { return float64(d) / 1e6 }
func mebi(bytes int64) float64       { return float64(bytes) / (1 << 20) }
