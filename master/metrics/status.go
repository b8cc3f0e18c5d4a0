package metrics

import (
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

// collector shows a master's status.
type collector func() master.Status

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	build     = desc("build_info", "What runs: always 1.", "version", "revision", "goversion")
	ready     = desc("ready", "1 if each slot has a worker that serves.")
	started   = desc("start_time_seconds", "When the master was started, in Unix time.")
	accepted  = desc("accepted_connections_total", "Connections that the master has accepted.")
	takenBack = desc("taken_back_connections_total", "Connections that the worker which they were given to did not take.")
	parked    = desc("parked_connections", "Connections that wait in the master now.")
	idle      = desc("idle_connections", "Connections that workers have handed back and that are between two requests.")
	largest   = desc("largest_client_share", "Share of the connections that the client with more than half of them has lately; 0 if no client has so many.")
	fullest   = desc("fullest_slot_share", "Share of the connections that the slot with most of them has lately; of those that are open where nobody knows how many came.")
	sessions  = desc("session_connections_total", "Connections, and where workers hand them back requests, that came by the id of a session which names a worker: to that worker, or to its successor in the slot.", "to")
	slots     = desc("slots", "The number of slots.")
	draining  = desc("draining_workers", "Workers that are in no slot any more and finish what they have.")
	workers   = desc("workers", "Workers of a generation that are in a state, in a slot or not.", "generation", "state")
	latest    = desc("generation", "That the slots run, or the latest of them; 1 before the first reload.")
	upgrades  = desc("upgrades_total", "How often the master's program has been replaced since the master was started.")
	reloading = desc("reload_in_progress", "1 while workers are being replaced.")

	state      = desc("worker_state", "1 for the state of the worker in the slot.", "slot", "state")
	generation = desc("worker_generation", "The reload that started the worker in the slot.", "slot")
	since      = desc("worker_start_time_seconds", "When the worker in the slot was started, in Unix time.", "slot")
	open       = desc("worker_open_connections", "Connections that the worker in the slot has open, if it says so.", "slot")
	taken      = desc("worker_accepted_connections_total", "Connections that the worker in the slot has accepted since it was started, if it says so.", "slot")
	passed     = desc("worker_passed_connections_total", "Connections that other slots' workers have passed to the worker in the slot between two requests, without the master, since it was started.", "slot")
	mayOpen    = desc("worker_open_connections_limit", "Connections that the worker in the slot may have open before further ones are refused, if it is held to that.", "slot")
	handsBack  = desc("worker_hands_back", "1 if the worker in the slot hands connections back whose next request is not its own, 0 if the first request on a connection decides for all; not there if none decides.", "slot")
	memory     = desc("worker_memory_bytes", "Memory that the worker in the slot and its process group have, if --max-memory bounds it: pages that they share count once.", "slot")
	restarts   = desc("worker_restarts_total", "Successors that were needed since a worker had ended, left, or could not be started.", "slot")
	handedOff  = desc("handed_off_connections_total", "Connections that the master gave to the slot's workers; one that was taken back counts again.", "slot")
	handedBack = desc("handed_back_connections_total", "Connections that the slot's workers handed back to the master between two requests, since the next one was another slot's or the worker drained.", "slot")
	slotParked = desc("slot_parked_connections", "Connections that wait in the master for the slot.", "slot")
	refused    = desc("slot_refused_connections_total", "Connections that were refused for want of the slot's worker.", "slot")
	full       = desc("mailbox_full_total", "How often the slot's worker did not keep up, each try counted.", "slot")
	handshakes = desc("slot_handshakes_total", "Handshakes that clients have begun to the slot, as the kernel counts them where it routes and the master may load eBPF.", "slot")
	slotOpen   = desc("slot_open_connections", "Connections of the slot's clients that workers have open, where workers accept for themselves.", "slot")
	queued     = desc("slot_queued_connections", "Connections that wait in the slot's listeners for its worker to accept them.", "slot")
)

// Describe says nothing: the collector is unchecked, since what it has depends on the route.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect asks for the status, and shows it.
func (status collector) Collect(out chan<- prometheus.Metric) {
	s := status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v *uint64, labels ...string) {
		if v != nil { // it is known
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(*v), labels...)
		}
	}
	gauge(build, 1, s.Version, revision, runtime.Version())
	gauge(ready, truth(s.Ready))
	gauge(started, float64(s.Started.Unix()))
	gauge(parked, float64(s.Totals.Parked))
	gauge(idle, float64(s.Totals.Idle))
	if s.Largest != nil {
		gauge(largest, s.Largest.Share)
	}
	if s.Fullest != nil {
		gauge(fullest, s.Fullest.Share)
	}
	if s.Sessions != nil {
		counter(sessions, &s.Sessions.ToWorker, "worker")
		counter(sessions, &s.Sessions.ToSuccessor, "successor")
	}
	gauge(slots, float64(len(s.Slots)))
	of := count(&s)
	finishing := len(s.Draining)
	for in, n := range of {
		gauge(workers, float64(n), strconv.Itoa(in.generation), in.state)
		if in.state == supervisor.Lingering.String() {
			finishing -= n
		}
	}
	gauge(draining, float64(finishing))
	gauge(latest, float64(s.Generation))
	gauge(reloading, truth(s.Reload != nil && s.Reload.Ended == nil))
	upgraded := uint64(s.Upgrade.Count)
	counter(upgrades, &upgraded)
	counter(accepted, s.Totals.Accepted)
	counter(takenBack, s.Totals.TakenBack)
	for i := range s.Slots {
		sl, slot := &s.Slots[i], strconv.Itoa(s.Slots[i].Slot)
		for _, name := range states {
			gauge(state, truth(sl.State == name), slot, name)
		}
		if w := sl.Worker; w != nil {
			gauge(generation, float64(w.Generation), slot)
			gauge(since, float64(w.Started.Unix()), slot)
			if w.Open != nil {
				gauge(open, float64(*w.Open), slot)
			}
			counter(taken, w.Accepted, slot)
			counter(passed, w.Passed, slot)
			if w.HandsBack != nil {
				gauge(handsBack, truth(*w.HandsBack), slot)
			}
			if w.Memory != nil {
				gauge(memory, float64(*w.Memory), slot)
			}
			if w.MaxOpen != nil {
				gauge(mayOpen, float64(*w.MaxOpen), slot)
			}
		}
		gauge(slotParked, float64(sl.Parked), slot)
		if sl.Open != nil {
			gauge(slotOpen, float64(*sl.Open), slot)
		}
		if sl.Queue != nil {
			gauge(queued, float64(*sl.Queue), slot)
		}
		again := uint64(sl.Restarts)
		counter(restarts, &again, slot)
		counter(refused, &sl.Refused, slot)
		counter(handshakes, sl.Handshakes, slot)
		counter(handedOff, sl.HandedOff, slot)
		counter(handedBack, sl.HandedBack, slot)
		counter(full, sl.MailboxFull, slot)
	}
}

// whereabouts are a generation, and a state of its workers.
type whereabouts struct {
	generation int
	state      string
}

// count returns how many workers there are in which state, of which generation.
func count(s *master.Status) map[whereabouts]int {
	of := make(map[whereabouts]int)
	add := func(w *master.WorkerStatus) {
		if w != nil {
			of[whereabouts{w.Generation, w.State}]++
		}
	}
	for i := range s.Slots {
		add(s.Slots[i].Worker)
		add(s.Slots[i].Next)
		add(s.Slots[i].Standby)
	}
	for i := range s.Draining {
		add(&s.Draining[i])
	}
	return of
}

// states are those that the worker in a slot can be in.
var states = []string{"empty", supervisor.Starting.String(), supervisor.Serving.String(), master.Hung, master.Unhealthy}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
