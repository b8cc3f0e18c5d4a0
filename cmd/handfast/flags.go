package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// env names the environment variable of a flag.
func env(name string) []string {
	return []string{"HANDFAST_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
}

func intFlag(name string, value int, usage string) cli.Flag {
	return &cli.IntFlag{Name: name, EnvVars: env(name), Value: value, Usage: usage}
}

func durationFlag(name string, value time.Duration, usage string) cli.Flag {
	return &cli.DurationFlag{Name: name, EnvVars: env(name), Value: value, Usage: usage}
}

func stringFlag(name, value, usage string) cli.Flag {
	return &cli.StringFlag{Name: name, EnvVars: env(name), Value: value, Usage: usage}
}

func workersFlag() cli.Flag {
	n, _ := defaultWorkers()
	return &cli.IntFlag{
		Name: "workers", Aliases: []string{"n"}, EnvVars: env("workers"),
		Value: n, DefaultText: "number of CPUs, or a cgroup's quota of them; at most 128",
		Usage: "number of slots, each with one worker",
	}
}

// hashFlags decide, with the number of workers, where a client belongs.
func hashFlags() []cli.Flag {
	config := hash.DefaultConfig()
	return []cli.Flag{
		&cli.Uint64Flag{Name: "hash-seed", EnvVars: env("hash-seed"), Value: uint64(config.Seed),
			Usage: "`NUMBER`, 0 to 4294967295; machines with the same one place clients alike, and who knows it can compute which clients share a slot"},
		intFlag("ipv4-prefix", config.IPv4Prefix, "`BITS` of an IPv4 address that tell clients apart"),
		intFlag("ipv6-prefix", config.IPv6Prefix, "`BITS` of an IPv6 address that tell clients apart"),
		stringFlag("key", forwarded.Key{}.String(), fmt.Sprintf("`LIST` of what clients are recognised by, at most %d with commas between them: the first that a request has counts, else the client's address. cookie:NAME, query:NAME, path:TEMPLATE (the segment of the path that has braces around it in a template such as /echo/*/{session}), or header:NAME, which a proxy sets, with --behind-proxy. Not for ids that workers make: see --session. Other than address they need --route master, which auto takes then", forwarded.MaxKeys)),
	}
}

// sessionFlags say how sessions find their workers.
func sessionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "session", EnvVars: env("session"),
			Usage: fmt.Sprintf("`WHERE` requests have the id of their session, repeatable, at most %d: header:NAME, cookie:NAME, query:NAME, path:TEMPLATE, or engine.io (Socket.IO's sid, with nothing to change in Node programs). An id that ends in a dot and the value of the worker's HANDFAST_ROUTE brings its requests to that worker, from whatever address, and also while a reload replaces it. Needs --route master, which auto takes then", forwarded.MaxSessions)},
		stringFlag("new-sessions", "key", "`WHERE` requests go that neither name their session nor bring a --key: key (by their client's address) or least (to the slot whose worker has the fewest connections open, if workers report them, else to one slot after the other), since behind one address there may be many clients. Needs --session"),
		durationFlag("session-idle", sessionIdle, "how long, since a request last named it, a worker that a reload has replaced goes on taking requests that name it; then it drains, at the latest after --drain-timeout. Longer than clients pause: Engine.IO polls at least every 25 s, people who read a page take minutes. 0: at once. With --session"),
		durationFlag("drain-affinity", 0, "how long clients that come back, by address or --key, go to the worker that has served them although a reload has replaced it; without a request for so long they are forgotten, and at most 65536 are remembered. Needs --route master, which auto takes then. 0: they go to the new worker at once"),
	}
}

// proxyFlags say which proxies may speak for clients, and how.
func proxyFlags() []cli.Flag {
	config := clientip.DefaultConfig()
	return []cli.Flag{
		&cli.BoolFlag{Name: "behind-proxy", EnvVars: env("behind-proxy"),
			Usage: "trusted peers are HTTP proxies: the client is the rightmost address in --proxy-header that is not a trusted proxy's"},
		stringFlag("proxy-header", forwarded.DefaultHeader, "`NAME` of the header with the client's address, such as X-Real-IP, CF-Connecting-IP or Forwarded"),
		stringFlag("trusted-proxies", forwarded.DefaultTrust, "`LIST` of CIDR ranges, addresses, and the words loopback, private and link-local, or @FILE with one a line and # comments, which an upgrade reads again; others are not believed"),
		intFlag("trusted-hops", 0, fmt.Sprintf("`NUMBER` of HTTP proxies between clients and handfast, at most %d: the client is that address from the right in --proxy-header, whoever those between are, or the leftmost of fewer, as Express (trust proxy) and Envoy (xff_num_trusted_hops with use_remote_address) count. The nearest must be in --trusted-proxies. 0: they are not counted", forwarded.MaxHops)),
		&cli.BoolFlag{Name: "hand-back", EnvVars: env("hand-back"), Value: true,
			Usage: "workers hand connections back between requests: those of HTTP proxies, since a proxy that pools them sends requests of many clients over each, and with --session, or a --key that clients bring, those of everybody; =false: the first request decides for all"},
		&cli.BoolFlag{Name: "proxy-protocol", EnvVars: env("proxy-protocol"),
			Usage: "trusted peers must begin with a PROXY protocol header, version 1 or 2, and others must not"},
		stringFlag("proxy-protocol-optional", "", "`LIST` of peers, as in --trusted-proxies, that may do without that header, such as health checks and hairpins inside a cluster: what begins with anything else, or with nothing within --header-timeout, is their own connection"),
		stringFlag("proxy-protocol-mode", "consume", "`MODE`: consume the PROXY header, or leave it for workers that read it themselves (gunicorn --proxy-protocol, nginx listen … proxy_protocol, HAProxy accept-proxy)"),
		durationFlag("header-timeout", config.HeaderTimeout, "for all headers of a connection to arrive; then 408"),
		stringFlag("header-limit", "16KiB", "`SIZE` of a request's head, or of a PROXY header, that is looked at; beyond it 431"),
	}
}

func runFlags() []cli.Flag {
	placing, super := balancer.DefaultConfig(), supervisor.DefaultConfig()
	flags := []cli.Flag{
		&cli.StringSliceFlag{
			Name: "listen", Aliases: []string{"l"}, EnvVars: env("listen"), DefaultText: "what systemd passes; else where the first workers listen (--worker-link any), or \":8080\"",
			Usage: "`ADDRESS` to listen on, repeatable: \":80\" is all IPv4 and IPv6, \"0.0.0.0:80\" all IPv4, \"[::]:80\" all IPv6, \"unix:/run/app/app.sock?mode=0660&group=www-data\" a Unix socket for a proxy on this machine, with --worker-link native and --behind-proxy",
		},
		&cli.BoolFlag{Name: "freebind", EnvVars: env("freebind"),
			Usage: "listen also on addresses that this machine does not have yet (IP_FREEBIND), instead of trying for some seconds"},
		stringFlag("slot-address", "", "`NETWORK` whose N-th address is slot N's, on the ports of --listen: what comes there gets that slot, whoever the client is. For proxies that choose the slot themselves; 127.77.0.0/24 for those on this machine"),
		workersFlag(),
		configFlag(),
	}
	flags = append(flags, hashFlags()...)
	flags = append(flags, sessionFlags()...)
	flags = append(flags, proxyFlags()...)
	return append(flags,
		durationFlag("retry-delay", placing.RetryDelay, "between two tries to deliver to an empty slot or a full mailbox"),
		intFlag("max-retries", placing.MaxRetries, "`NUMBER` of tries after the first; then the connection is refused"),
		intFlag("max-parked", placing.MaxParked, "`NUMBER` of connections that may wait for their slot or their headers; further ones get 503"),
		durationFlag("idle-timeout", placing.IdleTimeout, "how long a connection that a worker has handed back may have nothing of another request; then it is closed. Longer than proxies keep connections in their pools (nginx 60 s, Go's 90 s, Caddy 2 min), or they send requests into the close. As many as half of --max-parked may be idle; of more, those that are idle longest are closed"),
		intFlag("max-per-client", placing.MaxClient, "`NUMBER` of connections of one client that may wait for its slot; further ones get 503; 0: no such limit"),
		intFlag("max-connections-per-slot", 0, "`NUMBER` of connections that a slot's worker may have open; further ones get 503; 0: no such limit. For workers of --worker-link native that report them (package worker does), no effect on others. Needs --route master, which auto takes then"),
		stringFlag("when-down", "wait", "`WHAT` to do when the slot stays empty: wait (refuse after the retries) or next (the client's next slot takes it)"),
		stringFlag("refuse", "http", "`HOW` to refuse: http (502 or 503) or close"),
		stringFlag("ebpf", "auto", "`WHEN` to use eBPF, by which the kernel counts what comes to each slot and can tell more than 128 apart, with --route kernel: auto (if the master has CAP_BPF, and no seccomp filter could end it for trying), on (or do not start) or off"),
		stringFlag("route", "auto", "`WHO` gives clients to slots: kernel (each slot has a listener, and its worker accepts; by address only), master (accepts and hands off), or auto: the kernel if it can"),
		stringFlag("worker-link", "auto", "`HOW` workers get connections: "+linkHelp()),
		stringFlag("drain-signal", "auto", "`SIGNAL` on which a worker of --worker-link activation or any finishes what it has; none: it gets no more connections, and SIGTERM when its last one has ended (when handfast stops, its last request); auto: the signal that the program is known to finish on (check names it), else none"),
		stringFlag("ready-when", "auto", "`WHEN` a worker is ready: auto (it says so, or listens), which a delay such as 3s, tcp:HOST:PORT (accepts) or http://HOST:PORT/PATH (answers 200 to 399) may follow, at an address with {slot} and {generation} in it where this worker alone answers; notify: it says READY=1, too (--sd-notify); for Node workers also message ({cmd: 'ready'}), listening, or started (it has run, and its message handler is there), which is auto's if package.json depends on sticky-session or @socket.io/sticky"),
		&cli.BoolFlag{Name: "sd-notify", EnvVars: env("sd-notify"),
			Usage: "each worker has a NOTIFY_SOCKET, and says by sd_notify how it is: STATUS= is shown, STOPPING=1 has its slot get another, READY=1 counts with --ready-when notify, and a worker that has sent WATCHDOG=1 hangs when it stops doing so (--watchdog)"},
		durationFlag("ready-timeout", super.ReadyTimeout, "a worker that is not ready by then is replaced"),
		durationFlag("probation", super.Probation, "how long a worker that replaces another one, in a reload or drain, has to last; so long the other one stands by, and if the new one ends, leaves or hangs it takes its slot back, and the reload has failed; 0: none"),
		durationFlag("drain-timeout", super.DrainTimeout, "how long a replaced worker may linger (--session-idle) and finish its connections; then SIGTERM"),
		durationFlag("drain-spread", 0, "over how long the ends of --drain-timeout are spread, the last slot's first, so that not all clients of a generation connect anew in the same moment; Go workers with package worker also close their connections one after the other; at most --drain-timeout"),
		intFlag("max-draining", 0, "`NUMBER` of replaced workers of a slot that may linger and drain at a time; of more, the oldest get SIGTERM; 0: no such limit"),
		durationFlag("stop-timeout", super.StopTimeout, "the same when handfast stops"),
		durationFlag("stop-delay", 0, "how long handfast, told to stop, still accepts connections, while /readyz and status --ready say that it stops, so that load balancers send no more by then; a second signal ends that"),
		durationFlag("kill-timeout", super.KillTimeout, "from SIGTERM to SIGKILL"),
		durationFlag("watchdog", super.Watchdog, "how long connections may wait for a worker that takes none of them; then it hangs. Workers of --worker-link native that answer (package worker does, from Accept) are asked, too, when nothing waits. Longer than the longest request of a server that serves one at a time. 0: nobody looks"),
		stringFlag("when-hung", "report", "`WHAT` to do with a worker that hangs (--watchdog): report it, or replace it as one that has died (SIGKILL)"),
		stringFlag("healthy-when", "", "`WHAT` a worker that serves has to answer, again and again: tcp:HOST:PORT (accepts) or http://HOST:PORT/PATH (answers 200 to 399), with {slot} in it, at an address where this worker alone answers, as in --ready-when (default: it is not asked)"),
		durationFlag("health-interval", super.Health.Interval, "from an answer to the next question of --healthy-when"),
		durationFlag("health-timeout", super.Health.Timeout, "how long an answer may take"),
		intFlag("health-failures", super.Health.Failures, "`NUMBER` of failures in a row that make a worker unhealthy"),
		stringFlag("when-unhealthy", "report", "`WHAT` to do with an unhealthy worker: report it, or replace it: another one takes its place, one slot at a time, and when that is ready the unhealthy one drains"),
		stringFlag("max-memory", "", "`SIZE` of memory, such as 512MiB, that a worker and its process group may have (pages that they share count once); a worker with more is replaced, one slot at a time, by another one that is ready before it drains (default: no limit)"),
		durationFlag("max-age", super.MaxAge, "how old a worker may be, or up to a tenth less, so that not all are at the same time; then it is replaced, likewise. 0: no limit"),
		durationFlag("min-uptime", super.MinUptime, "a worker that ends before died young, and its successors are delayed"),
		durationFlag("backoff-min", super.BackoffMin, "delay after the second of them; it doubles"),
		durationFlag("backoff-max", super.BackoffMax, "up to this"),
		intFlag("max-restarts", super.MaxRestarts, "`NUMBER` of workers of a slot in a row that may die young and be replaced; when the next one does, too, handfast stops, with exit status 3. 0: any number"),
		stringFlag("directory", "", "`PATH` where workers run, looked up anew at each start: a symbolic link may lead to another version by then. A COMMAND such as ./server is relative to it (default: where handfast runs)"),
		&cli.StringSliceFlag{Name: "env", EnvVars: env("env"),
			Usage: "`NAME=value` for the environment of workers, repeatable; {slot} and {generation} in it, and in COMMAND's arguments, are the worker's numbers, {{slot}} is {slot}"},
		&cli.StringSliceFlag{Name: "env-file", EnvVars: env("env-file"),
			Usage: "`FILE` of lines NAME=value for the environment of workers, repeatable, read at each start; --env comes before it"},
		nameFlag(),
		&cli.StringSliceFlag{Name: "admin", EnvVars: env("admin"), DefaultText: "NAME.sock in the runtime directory",
			Usage: "`PATH|HOST:PORT|off` where to answer status and commands, repeatable: PATH, which this user and root can open, in place of the default; HOST:PORT beside it, for all who can connect (without HOST that is this machine); off: no socket"},
		stringFlag("access-log", "", "`FILE` that gets a line for each connection: who, which slot and worker, how long it was parked, what became of it; - is standard output. SIGUSR1 opens it anew. Needs --route master, which auto takes then"),
		stringFlag("user", "", "`NAME` or number of the user that workers run as, with the groups of that user; only root can change it (default: handfast's)"),
		stringFlag("group", "", "`NAME` or number of the group that workers run as (default: the user's)"),
		&cli.BoolFlag{Name: "drop-root", EnvVars: env("drop-root"),
			Usage: "the master itself becomes --user, too, as soon as all is open that it listens on"},
		&cli.BoolFlag{Name: "no-new-privs", EnvVars: env("no-new-privs"),
			Usage: "workers gain no rights by set-user-ID programs, such as sudo"},
		&cli.StringSliceFlag{Name: "restart-on-change", EnvVars: env("restart-on-change"),
			Usage: "`PATH` of a file, or of a directory with all that is below, repeatable: when something there changes, all workers are replaced, as by a reload. For development, not for production, where a version that is half copied would be started. Hidden files, node_modules, __pycache__ and what editors leave do not count"},
		stringFlag("worker-output", "auto", "`HOW` what workers print is written: prefix (each line behind its slot), json (an object for each line, with slot, pid, generation and stream), raw (as it is; workers write to handfast's own standard output and error), or auto: json with --log-json, prefix if standard error is a terminal, else raw"),
		stringFlag("log-level", "info", "`LEVEL`: trace, debug, info, warn or error"),
		&cli.BoolFlag{Name: "log-json", EnvVars: env("log-json"), Usage: "log JSON, one object a line"},
	)
}
