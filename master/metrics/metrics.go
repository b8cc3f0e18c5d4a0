// Package metrics shows a master to Prometheus, with the official client library and in its
// conventions (https://prometheus.io/docs/practices/naming/).
//
// All that the master knows at any time is read from its Status when Prometheus asks, and costs
// nothing before. What happens between two questions is counted here: Metrics is told of
// it by the master's hooks (Outcome, Event).
package metrics

import (
	"github.com/handfast/handfast/master/balancer"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

const namespace = "handfast"

// parkedBuckets reach from a successor that was ready at once to --max-retries' default
// patience, and ten times that.
var parkedBuckets = []float64{.001, .005, .02, .1, .25, .5, 1, 2.5, 5, 10, 50}

// reloadBuckets are for servers that start in a moment, and for such as take minutes.
var reloadBuckets = []float64{.1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}

// Metrics counts what happens. Its methods may be called at any time, by any goroutine.
type Metrics struct {
	registry       *prometheus.Registry
	parked         *histograms
	refused        *counters
	ended          *counters
	hung           *counters
	reloads        *counters
	reloadDuration *histograms

	mu       sync.Mutex
	reloadAt time.Time
}

// New returns Metrics that have been told of nothing yet.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		parked:   newHistograms("parked_seconds", "How long connections were parked that a worker took in the end.", "", parkedBuckets),
		refused: newCounters("refused_connections_total", "Connections that were refused, or whose client had gone, before a worker had them.",
			"reason", balancer.Reasons()...),
		ended: newCounters("worker_failures_total", "Workers that needed a successor which nobody had asked for.",
			"reason", slices.Collect(maps.Values(failures))...),
		hung:           newCounters("watchdog_timeouts_total", "How often a worker has hung for the time of the watchdog, whatever was done then.", "", ""),
		reloads:        newCounters("reloads_total", "Reloads that have ended.", "result", succeeded, failed),
		reloadDuration: newHistograms("reload_duration_seconds", "How long reloads took.", "result", reloadBuckets),
	}
	m.parked.at("")
	m.registry.MustRegister(m.parked, m.refused, m.ended, m.hung, m.reloads, m.reloadDuration,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Results of reloads.
const (
	succeeded = "success"
	failed    = "failure"
)

// failures are the reasons for which a worker needs a successor.
var failures = map[supervisor.EventKind]string{
	supervisor.WorkerStartFailed: "start_failed",
	supervisor.WorkerNotReady:    "not_ready",
	supervisor.WorkerLeft:        "left",
	supervisor.WorkerExited:      "exited",
	supervisor.WorkerHung:        "watchdog",
}

// Outcome counts a connection that was parked, refused, or is gone
// (balancer.Config.OnOutcome).
func (m *Metrics) Outcome(o balancer.Outcome) {
	switch {
	case o.Err != nil:
		m.refused.inc(o.Reason())
	case o.Parked > 0:
		m.parked.observe("", o.Parked.Seconds())
	}
}

// Event counts what happens to workers and reloads (master.Config.OnEvent).
func (m *Metrics) Event(e supervisor.Event) {
	switch e.Kind {
	case supervisor.WorkerExited, supervisor.WorkerLeft:
		if e.Failed() {
			m.ended.inc(failures[e.Kind])
		}
	case supervisor.WorkerStartFailed, supervisor.WorkerNotReady:
		m.ended.inc(failures[e.Kind])
	case supervisor.WorkerHung:
		m.hung.inc("")
		if e.Replaced {
			m.ended.inc(failures[e.Kind])
		}
	case supervisor.Reloading:
		m.mu.Lock()
		m.reloadAt = time.Now()
		m.mu.Unlock()
	case supervisor.Reloaded:
		m.reloaded(succeeded)
	case supervisor.ReloadFailed:
		m.reloaded(failed)
	}
}

func (m *Metrics) reloaded(result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reloads.inc(result)
	m.reloadDuration.observe(result, time.Since(m.reloadAt).Seconds())
}

// LinesLeftOut shows how many lines of a log were left out, since nothing waits for its reader.
func (m *Metrics) LinesLeftOut(log string, lines func() uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: "log_lines_left_out_total",
		Help: "Lines that were left out of a log since its reader, or its disk, was too slow.", ConstLabels: prometheus.Labels{"log": log}},
		func() float64 { return float64(lines()) }))
}

// Handler answers Prometheus, with what status says at that moment.
func (m *Metrics) Handler(status func() master.Status) http.Handler {
	m.registry.MustRegister(collector(status))
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// revision is the commit that this program was built from, if that is known.
var revision = findRevision()

func findRevision() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return ""
}
