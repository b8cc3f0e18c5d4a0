package main

import (
	"context"
)

// webSocketExchange is the opening handshake with the key of RFC 6455 section
// 1.3. That the answer fits the key is shown by the messages that follow.
var webSocketExchange = exchange{
	requests: [][]byte{[]byte("GET /websocket HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")},
	prefix: []byte("HTTP/1.1 101 "),
	suffix: []byte("\r\n\r\n"),
}

// messageExchange is a message as it is sent and as it returns.
var messageExchange = message(64)

// message is one frame, masked by the client only (RFC 6455 section 5.2).
func message(size byte) exchange {
	const (
		finalBinary = 0x82
		masked      = 0x80
	)
	mask := []byte("mask") // for browsers it has to be random, against caches that are tricked
	sent := append([]byte{finalBinary, masked | size}, mask...)
	var returned []byte
	for i := range size {
		sent = append(sent, i^mask[i%4])
		returned = append(returned, i)
	}
	return exchange{
		requests: [][]byte{sent}, prefix: []byte{finalBinary, size}, suffix: returned, length: 2 + int(size),
	}
}

// webSockets opens connections and then has messages go to and fro on them.
func webSockets(ctx context.Context, s *stage) (sample, error) {
	if err := s.warmUp(ctx, shortExchange); err != nil {
		return nil, err
	}
	empty, err := s.usage()
	if err != nil {
		return nil, err
	}
	held, err := s.hold(ctx, webSocketExchange)
	defer held.closeKept()
	if err != nil {
		return nil, err
	}
	result, used, after, err := s.meteredTalk(ctx, &held, messageExchange)
	if err != nil {
		return nil, err
	}
	messages := float64(len(result.latencies))
	return result.withLatencies(sample{
		connections:        float64(len(held.latencies)),
		messageRate:        float64(result.inTime) / s.duration.Seconds(),
		balancerMessageCPU: micros(used.balancer) / messages,
		workerMessageCPU:   micros(used.workers) / messages,
		totalMessageCPU:    micros(used.total()) / messages,
		failures:           float64(held.failed + result.failed),
		addedTotal:         mebi(after.since(empty).balancerMem),
		balancerMem:        mebi(after.balancerMem),
	}), nil
}
