package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// work is something to do to peers, and the table that comes of it.
type work struct {
	name    string
	title   string
	method  string
	lacks   func() string // the package to install, empty: nothing; nil: nothing
	peers   []string      // whom it compares
	cases   []variant     // in which it does so, a row of the table for each; nil: one, as the flags say
	columns []column
	plots   []string // the figures to draw
	do      func(context.Context, *stage) (sample, error)
}

func (w work) String() string { return w.name }

// variant is a case of a work. Without a label there is no other.
type variant struct {
	label string
	apply func(*settings)
}

// row is a line of a work's table: a peer in a case.
type row struct {
	name string
	peer peer
	variant
}

// rows returns what the work compares, as far as peers are there.
func (w work) rows(peers []peer) []row {
	cases := w.cases
	if cases == nil {
		cases = []variant{{apply: func(*settings) {}}}
	}
	var rows []row
	for _, p := range peers {
		if !slices.Contains(w.peers, p.name) {
			continue
		}
		for _, c := range cases {
			r := row{p.name, p, c}
			if c.label != "" {
				r.name += ", " + c.label
			}
			rows = append(rows, r)
		}
	}
	return rows
}

func rowNames(rows []row) []string {
	var list []string
	for _, r := range rows {
		list = append(list, r.name)
	}
	return list
}

// Peers that others are compared with.
const (
	theLimit     = "reuseport"
	theSteered   = "handfast-kernel"
	theHandoff   = "handfast"
	theInjected  = "handfast-any"
	theStandard  = "haproxy-tcp"
	theHTTPProxy = "nginx-http"

	theHashedPool  = "nginx-pool"
	theNodePool    = "nginx-node-pool"
	theNodePoolOff = "handfast-node-pool-off"

	theNodeCluster  = "node-cluster"
	theStickyListen = "sticky-listen"
)

// Peers that the works compare.
var (
	// transparent peers do not look into what passes.
	transparent = []string{theLimit, theSteered, theHandoff, theInjected, theStandard, "nginx-stream", tcpproxyName}
	all         = append(slices.Clone(transparent), theHTTPProxy, "haproxy-http")
	forwarding  = []string{theLimit, theHandoff, "handfast-behind-proxy", "handfast-sessions", theInjected + "-behind-proxy", theHTTPProxy, "haproxy-http"}
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
	slowest     = "max ms"
	failures    = "failed"
	balancerMem = "balancer MiB"
	connections = "connections"
	added       = "balancer +bytes/conn"
	addedTotal  = "balancer +MiB"
	workerAdded = "workers +bytes/conn"

	messageRate        = "msg/s"
	balancerMessageCPU = "balancer µs/msg"
	workerMessageCPU   = "workers µs/msg"
	totalMessageCPU    = "total µs/msg"

	throughput      = "MB/s"
	balancerByteCPU = "balancer ms/GiB"
	workerByteCPU   = "workers ms/GiB"
	totalByteCPU    = "total ms/GiB"

	replacing = "reload s"

	requestRate        = "requests/s"
	balancerRequestCPU = "balancer µs/request"
	workerRequestCPU   = "workers µs/request"
	totalRequestCPU    = "total µs/request"
	misplaced          = "wrong slot"
)

// moreIsBetter are the figures of which that is true.
var moreIsBetter = []string{rate, messageRate, requestRate, throughput, connections}

// works is the table of works.
var works = []work{
	shortWork(1),
	shortWork(4),
	shortWork(16),
	{
		name:  "forwarded",
		title: "Short connections behind a proxy",
		method: "As the short connections, but the load plays a proxy that has ended TLS: each request has the head of a " +
			"browser's and names one of the clients in X-Forwarded-For. All but reuseport and plain handfast place the " +
			"connection by that name. The request is sent as soon as the connection is open, so it mostly is there when the balancer looks.",
		peers: forwarding,
		columns: slices.Concat([]column{
			{of: balancerCPU, over: theHandoff}, {of: balancerCPU, over: theHTTPProxy}, {of: rate, over: theLimit},
		}, shortFigures),
		plots: []string{rate, balancerCPU, latency99},
		do:    forwardedConnections,
	},
	{
		name:  "pooled",
		title: "Requests through a proxy that keeps its connections open",
		method: fmt.Sprintf("The load keeps %d connections to a proxy open and sends requests on them, each of another client by its X-Forwarded-For. "+
			"The proxy is nginx but for one peer, and keeps connections to what is behind it open, or does not: that is in the peer's description. "+
			"The balancer's processor time is that of the proxy and, where it is there, of handfast's master. A request is in the wrong slot "+
			"if another worker answered it than answered its client before.", pooledConnections),
		peers:   []string{theHashedPool, "haproxy-pool", "handfast-pool", "handfast-slots", "handfast-pool-off"},
		cases:   []variant{{apply: pooled}},
		columns: pooledFigures(theHashedPool),
		plots:   []string{requestRate, totalRequestCPU, latency99},
		do:      pooledRequests,
	},
	{
		name:    "node-pooled",
		title:   "Requests through a proxy that keeps its connections open, with Node workers",
		method:  "The same with Node workers. They give each connection back when its request is answered, since they cannot look at the next one.",
		peers:   names(nodePooledPeers),
		cases:   []variant{{apply: pooled}},
		columns: pooledFigures(theNodePool, theNodePoolOff),
		plots:   []string{requestRate, totalRequestCPU, latency99},
		do:      pooledRequests,
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
		plots: []string{rate, balancerCPU, latency99},
		do:    shortConnections,
	},
	{
		name:  "websocket",
		title: "Messages over open WebSockets",
		method: "All connections are opened first, by the handshake of WebSockets (RFC 6455), and stay open. Then one after the other carries " +
			"a masked message of 64 bytes and gets it back, as many at a time as connections are in flight elsewhere. " +
			"The workers use github.com/coder/websocket. Latency and processor time are those of a message. " +
			"The memory is what the balancer has more than before it had connections.",
		peers: all,
		columns: []column{
			{of: messageRate, over: theLimit}, {of: totalMessageCPU, over: theLimit}, {of: balancerMessageCPU, over: theStandard},
			{of: messageRate}, {of: totalMessageCPU}, {of: balancerMessageCPU}, {of: workerMessageCPU},
			{of: latency50}, {of: latency99}, {of: latency999}, {of: failures}, {of: connections}, {of: addedTotal}, {of: balancerMem},
		},
		plots: []string{messageRate, balancerMessageCPU, latency99},
		do:    webSockets,
	},
	{
		name:   "download",
		title:  "One large download",
		method: "curl gets one answer over one connection and throws it away; its processor time is part of the total.",
		lacks:  func() string { return unless(program("curl") != "", "curl") },
		peers:  all,
		columns: []column{
			{of: throughput, over: theLimit}, {of: totalByteCPU, over: theLimit}, {of: balancerByteCPU, over: theStandard},
			{of: throughput}, {of: totalByteCPU}, {of: balancerByteCPU}, {of: workerByteCPU},
		},
		plots: []string{throughput, balancerByteCPU, totalByteCPU},
		do:    download,
	},
	{
		name:  "held",
		title: "Connections held open",
		method: "Each connection is switched to another protocol, as a WebSocket is, and stays open and idle. " +
			"Memory is the anonymous memory of the processes (Pss_Anon) before and after; the kernel's own, " +
			"which proxies need for two sockets instead of one, comes on top.",
		peers: transparent,
		columns: []column{
			{of: added, over: theStandard},
			{of: connections}, {of: added}, {of: addedTotal}, {of: balancerMem}, {of: workerAdded}, {of: failures},
		},
		plots: []string{addedTotal, balancerMem},
		do:    heldConnections,
	},
	{
		name:  "crowded",
		title: "Short connections while others are open",
		method: "As the short connections, while connections are held open. A held one that ends or is written to counts as failed. " +
			"Compare with the short connections: what is open should cost those that come nothing.",
		peers: transparent,
		columns: slices.Concat([]column{
			{of: rate, over: theLimit}, {of: totalCPU, over: theLimit}, {of: balancerCPU, over: theStandard},
		}, shortFigures, []column{{of: connections}}),
		plots: []string{rate, balancerCPU, latency99},
		do:    crowdedConnections,
	},
	{
		name:  "reload",
		title: "A reload under short connections",
		method: "As the short connections; meanwhile all workers are replaced once, as users of the peer do it. handfast gets a SIGUSR2. " +
			"Before a proxy new workers start at other ports, its configuration is written anew, and it is told to read it (nginx -s reload; " +
			"SIGUSR2 to HAProxy's master); the old workers finish and leave when those of its processes that know them have. " +
			"With reuseport new workers join, then the old ones close their listeners, which resets what waits in their queues. " +
			"The reload lasts until every answer comes from a new worker. The load goes on for half its duration before and after.",
		peers:   []string{theLimit, theSteered, theHandoff, theInjected, theStandard, "nginx-stream"},
		columns: reloadFigures,
		plots:   []string{failures, latency999, slowest},
		do:      reloadUnderLoad,
	},
	{
		name:  "node-reload",
		title: "A reload under short connections, with Node workers",
		method: "The same with Node workers: SIGUSR2 to handfast, and to recluster, which the README of sticky-listen uses. " +
			"Node's own cluster and sticky-session have no reload.",
		peers:   []string{theStickyListen, "handfast-sticky-listen", "handfast-node", "handfast-node-kernel"},
		columns: reloadFigures,
		plots:   []string{failures, latency999, slowest},
		do:      reloadUnderLoad,
	},
	{
		name:  "sweep-workers",
		title: "What the number of workers costs",
		method: "Short connections before ever more workers, each with as many connections in flight: were it as many for all together, " +
			"a batch for one of 64 workers would mostly be one connection. By the kernel's route workers accept for themselves; " +
			"how the total grows there is what so many processes cost on so few cores.",
		peers: []string{theHandoff, theSteered},
		cases: busyWorkerCases(2, 4, 8, 16, 32, 64),
		columns: []column{
			{of: balancerCPU, over: theHandoff + ", 2 workers"}, {of: totalCPU, over: theHandoff + ", 2 workers"},
			{of: balancerCPU}, {of: totalCPU}, {of: rate}, {of: latency99}, {of: failures}, {of: balancerMem},
		},
		plots: []string{balancerCPU, totalCPU},
		do:    shortConnections,
	},
	{
		name:   "sweep-clients",
		title:  "What the number of clients costs",
		method: "Short connections from ever more clients, long enough for most of them to come once.",
		peers:  []string{theHandoff},
		cases:  clientCases(10, 100, 1000, 10_000, 100_000),
		columns: []column{
			{of: balancerCPU, over: theHandoff + ", 10 clients"}, {of: totalCPU, over: theHandoff + ", 10 clients"},
			{of: balancerCPU}, {of: totalCPU}, {of: rate}, {of: latency99}, {of: failures}, {of: balancerMem},
		},
		plots: []string{balancerCPU, totalCPU},
		do:    shortConnections,
	},
}

// shortWork is the plain work, with a number of workers that is its own.
func shortWork(workers int) work {
	one := workerCases(workers)
	title := "Short connections, " + one[0].label
	one[0].label = ""
	return work{
		name:  fmt.Sprintf("short-%d", workers),
		title: title,
		method: "Each connection carries one HTTP request. Latency is from connect to the last byte of the answer; " +
			"the client then resets the connection. Processor time is what the processes' own clocks say, user and kernel, " +
			"divided by the connections served; the total is that of balancer, workers and load generator, and hardly " +
			"depends on what else the machine does.",
		peers: all,
		cases: one,
		columns: slices.Concat([]column{
			{of: rate, over: theLimit}, {of: totalCPU, over: theLimit}, {of: balancerCPU, over: theStandard},
		}, shortFigures),
		plots: []string{rate, balancerCPU, latency99},
		do:    shortConnections,
	}
}

func workerCases(numbers ...int) (cases []variant) {
	for _, n := range numbers {
		label := fmt.Sprintf("%d workers", n)
		if n == 1 {
			label = "1 worker"
		}
		cases = append(cases, variant{label, func(set *settings) { set.workers = n }})
	}
	return cases
}

// busyWorkerCases have as many connections in flight for each worker as there are
// with two.
func busyWorkerCases(numbers ...int) []variant {
	cases := workerCases(numbers...)
	for i, n := range numbers {
		apply := cases[i].apply
		cases[i].apply = func(set *settings) {
			apply(set)
			set.concurrency = max(set.concurrency*n/2, 1)
		}
	}
	return cases
}

// clientCases give the load time to come from most of the clients, if it manages
// perSecond.
func clientCases(numbers ...int) (cases []variant) {
	const perSecond = 10_000
	for _, n := range numbers {
		cases = append(cases, variant{thousands(n) + " clients", func(set *settings) {
			set.clients = n
			set.duration = max(set.duration, time.Duration(n)*time.Second/perSecond)
		}})
	}
	return cases
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
