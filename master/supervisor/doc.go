// Package supervisor keeps a fixed number of slots filled with worker processes.
//
// It knows nothing of connections. What connects a worker to its work is a Link,
// made anew for each process, and Slots is told which slot holds which link. The master gives it links that carry connections; used alone
// it is a process manager with readiness, backoff and rolling reload:
//
//	s, err := supervisor.New(config)
//	go s.Run(ctx)       // until Stop, or at once when ctx ends
//	s.Reload(ctx)       // slot by slot; nil when all slots run the new generation
//	s.Replace(ctx, 2)   // the same for one slot
//	s.Scale(8)
//	s.Snapshot()        // who is where, and how far a reload is
//	s.Stop()
//
// One worker's life:
//
//	starting ──ready──► serving ──left─────────────► draining ──deadline, finished──► stopping ──deadline──► killed
//	    │                │   ▲                           ▲                                ▲
//	    │        replaced▼   │successor fails            │nobody comes back, deadline     │
//	    │                standby ──successor lasts──► lingering                           │
//	    └──────ready timeout, left, not needed────────────────────────────────────────────┘
//
// A worker that is not needed any more before it is ready drains if it may have clients already (earlyLink). One that was
// replaced for good lingers only if clients may come back to it (linger.go), else it drains at once. One
// deadline, which begins with the replacement, then holds for lingering and draining together. Workers also go from serving
// or lingering to killed, if they do not answer the watchdog (watchdog.go), and from any state to exited, when the process has
// ended, and with it all of its process group: what the first process leaves behind has its listeners. If that one was
// serving, standby or lingering, the rest is stopping; else nothing changes. Until nobody is left the first process is not
// reaped, so that its number, which is the group's, stays ours.
//
// # One loop, which waits for nothing
//
// All state belongs to the goroutine that calls Run: methods send it functions to run, and so do the goroutines
// that observe a worker (one waits for the end of its process, one for what its link reports). Time is one deadline
// for each worker and slot, and one beat of the watchdog for each worker; the loop sleeps until the earliest. After each
// turn it publishes a Snapshot, which never changes, so that readers disturb nobody.
//
// A turn is short, whatever hangs. Everything that may take long has a goroutine of its own: the start of a worker,
// with all that it opens, reads and runs (spawn); the end of its process (awaitEnd); the closing of its link
// (closeLink); log lines and events (reporter); an upgrade's wait until nothing moves (Quiesce). The
// loop itself calls Slots, Config.OnEventInLoop, and of a link Ping, Drain, DrainsGroup and Err, which must not wait; it
// sends signals, and reaps processes that have ended.
//
// # Where what happens
//
//	supervisor.go            the loop and its time; Stop, Ping
//	config.go                what to run, and how patient to be
//	link.go                  Link: what connects a worker to its work
//	request.go               what others ask for: Reload, Replace; in scale.go: Scale; in linger.go: DrainLingering
//	start.go, process.go     a worker's start; how a process is made. setting.go, envfile.go: where, and with which variables
//	watch.go, watchdog.go    a worker's life: what its process and its link tell; pings
//	health.go, recycle.go    whether workers are healthy; replacing them one by one: for that, their memory, their age
//	end.go                   a worker's end, and when its slot gets the next one
//	reload.go                slot by slot, with probation; linger.go: after it, for the clients of those that were replaced
//	draining.go              how many drain at a time, and that they do not end together
//	worker.go, state.go      a worker, a slot; the states and the moves between them
//	report.go, reporter.go   log lines and events; event.go: the kinds of these
//	snapshot.go              what can be seen from outside
//	output.go                last words
//	upgrade.go               Quiesce, Save and the way back
//	orphans.go               processes that became ours since their parents have ended
package supervisor
