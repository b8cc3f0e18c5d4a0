// Package supervisor keeps a fixed number of slots filled with worker processes.
//
// It knows nothing of connections. What connects a worker to its work is a Link,
// made anew for each process, and who wants to know which slot holds which link
// implements Slots. The master gives it links that carry connections; used alone
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
//	starting ──ready──► serving ──left──► draining ──deadline, finished──► stopping ──deadline──► killed
//	    │                │   ▲               ▲                                ▲
//	    │        replaced▼   │successor fails│                                │
//	    │                standby ────────────┘ successor lasts                │
//	    └──────ready timeout, left, not needed────────────────────────────────┘
//
// from serving to killed, if it does not answer the watchdog (watchdog.go), and from any
// state to exited, when the process has ended, and with it all of its process group: what the first
// process leaves behind has its listeners. If that one was serving, the rest is stopping; else
// nothing changes. Until nobody is left the first process is not reaped, so that its number, which is
// the group's, stays ours.
//
// All state belongs to the goroutine that calls Run: methods send it functions
// to run, and so do the two goroutines that each process has (one waits for its
// end, one watches its link). Time is one deadline per worker and slot, and one
// beat of the watchdog per worker; the loop sleeps until the earliest. After each turn it publishes a Snapshot, which never
// changes: whoever reads disturbs nobody.
package supervisor
