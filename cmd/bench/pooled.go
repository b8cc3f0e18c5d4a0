package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// The pooled work: requests of many clients come mixed on the connections that a
// proxy keeps open, and each has to reach its client's worker.

const (
	pooledWorkers     = 4
	pooledConnections = 32 // between the load and the proxy
	proxyPool         = 64 // idle connections that each process of nginx keeps
)

// pooledFigures are what is shown of requests, first in relation to these peers.
func pooledFigures(peers ...string) (list []column) {
	for _, peer := range peers {
		list = append(list, column{of: requestRate, over: peer}, column{of: totalRequestCPU, over: peer})
	}
	return append(list, []column{
		{of: requestRate}, {of: totalRequestCPU}, {of: balancerRequestCPU}, {of: workerRequestCPU},
		{of: latency50}, {of: latency99}, {of: latency999}, {of: misplaced}, {of: failures},
	}...)
}

// byForwarded has nginx choose the server by the client.
const byForwarded = "hash $http_x_forwarded_for consistent"

// keptAlive is longer than any load lasts: the proxies close no connection for its age.
const keptAlive = "keepalive_requests 100000000"

// pooledRequests sends requests on connections that are kept open.
func pooledRequests(ctx context.Context, s *stage) (sample, error) {
	x := forwardedExchange(s.clients)
	held, err := s.holdSome(ctx, x, s.concurrency)
	defer held.closeKept()
	if err != nil {
		return nil, err
	}
	result, used, _, err := s.meteredTalk(ctx, &held, x)
	if err != nil {
		return nil, err
	}
	requests := float64(len(result.latencies))
	return result.withLatencies(sample{
		requestRate:        float64(result.inTime) / s.duration.Seconds(),
		balancerRequestCPU: micros(used.balancer) / requests,
		workerRequestCPU:   micros(used.workers) / requests,
		totalRequestCPU:    micros(used.total()) / requests,
		misplaced:          float64(result.misplaced),
		failures:           float64(held.failed + result.failed),
	}), nil
}

func pooled(set *settings) {
	set.workers, set.concurrency = pooledWorkers, pooledConnections
	set.duration = max(set.duration, 3*time.Second)
}

var (
	haproxyPooled = haproxy("mode http", "balance hdr(X-Forwarded-For)", "hash-type consistent", "http-reuse always")
	nginxPooled   = nginx(nginxPool(byForwarded, proxyPool))
)

// frontedBy starts handfast, and nginx in front of it, which has its address for its
// only server.
func frontedBy(front func(address, servers string) string, start func(*stage) error) func(*stage) error {
	return func(s *stage) error {
		return s.runFronted(front, start, func(behind netip.AddrPort) []string { return []string{behind.String()} })
	}
}

// frontedBySlots does the same, but the servers of nginx are the slots, at addresses of their own.
func frontedBySlots(front func(address, servers string) string) func(*stage) error {
	network := netip.MustParsePrefix("127.77.0.0/24")
	return func(s *stage) error {
		return s.runFronted(front, startServing("--slot-address", network.String()), func(behind netip.AddrPort) (servers []string) {
			address := network.Addr()
			for range s.workers {
				servers = append(servers, netip.AddrPortFrom(address, behind.Port()).String())
				address = address.Next()
			}
			return servers
		})
	}
}

// startServing starts handfast with workers that call worker.Serve.
func startServing(flags ...string) func(*stage) error {
	return func(s *stage) error {
		return s.runHandfast([]string{envWorker + "=" + byServe}, flags, s.self)
	}
}

// runFronted starts handfast by start at an address, and nginx for clients in front of it.
func (s *stage) runFronted(front func(address, servers string) string, start func(*stage) error, servers func(netip.AddrPort) []string) error {
	clients := s.address
	behind, err := freeAddress()
	if err != nil {
		return err
	}
	s.address = behind
	if err := start(s); err != nil {
		return err
	}
	if err := s.await(); err != nil {
		return err
	}
	handfast := s.balancerPIDs
	s.address = clients
	if err := nginx(front).runBefore(s, servers(behind)...); err != nil {
		return err
	}
	s.balancerPIDs = append(s.balancerPIDs, handfast...)
	return nil
}

// nginxPool passes requests on by connections of a pool of that many idle ones, or
// if it is 0 on one of their own.
func nginxPool(balance string, size int) func(address, servers string) string {
	if balance != "" {
		balance += "; "
	}
	keepalive := ""
	connection := "close"
	if size > 0 {
		keepalive, connection = fmt.Sprintf("keepalive %d; %s; ", size, keptAlive), `""`
	}
	return func(address, servers string) string {
		return fmt.Sprintf(`http {
	access_log off;
	%s;
%s	upstream workers { %s%s%s}
	server {
		listen %s;
		location / {
			proxy_pass http://workers;
			proxy_http_version 1.1;
			proxy_set_header Connection %s;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		}
	}
}
`, keptAlive, nginxBodies, balance, servers, keepalive, address, connection)
	}
}
