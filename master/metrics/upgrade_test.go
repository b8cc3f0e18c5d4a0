package metrics

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
	"github.com/handfast/handfast/master/supervisor"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{
		Refused:        map[string]uint64{"slot_empty": 7, "other": 0},
		Failures:       map[string]uint64{"exited": 2},
		Hung:           map[string]uint64{"": 3},
		Reloads:        map[string]uint64{"success": 5, "failure": 1},
		Parked:         map[string]histogram{"": {Count: 9, Sum: 61.25, Buckets: []uint64{0, 1, 0, 0, 2, 0, 0, 0, 0, 5, 0}}},
		ReloadDuration: map[string]histogram{"success": {Count: 5, Sum: 10.5, Buckets: []uint64{0, 0, 0, 5, 0, 0, 0, 0, 0, 0}}},
	})
}

// TestUpgrade: all that was counted goes on in the next program.
func TestUpgrade(t *testing.T) {
	m := New()
	count := func(m *Metrics) {
		m.Outcome(balancer.Outcome{Parked: 30 * time.Millisecond})
		m.Outcome(balancer.Outcome{Parked: time.Hour})
		m.Outcome(balancer.Outcome{Err: errors.New("unheard of")})
		m.Event(supervisor.Event{Kind: supervisor.Reloading})
		m.Event(supervisor.Event{Kind: supervisor.Reloaded})
		m.Event(supervisor.Event{Kind: supervisor.WorkerNotReady})
		m.Event(supervisor.Event{Kind: supervisor.WorkerHung})
	}
	count(m)
	b := reexec.NewBundle("before")
	if err := m.Save(b); err != nil {
		t.Fatal(err)
	}
	next := New()
	if err := next.Restore(b); err != nil {
		t.Fatal(err)
	}
	if before, after := m.save(), next.save(); !reflect.DeepEqual(before, after) {
		t.Errorf("saved %+v, restored %+v", before, after)
	}
	count(next)
	text := scrape(t, next, master.Status{})
	for _, want := range []string{
		"handfast_parked_seconds_count 4\n",
		`handfast_parked_seconds_bucket{le="0.02"} 0` + "\n",
		`handfast_parked_seconds_bucket{le="0.1"} 2` + "\n",
		`handfast_parked_seconds_bucket{le="50"} 2` + "\n",
		`handfast_parked_seconds_bucket{le="+Inf"} 4` + "\n",
		`handfast_refused_connections_total{reason="other"} 2` + "\n",
		`handfast_reloads_total{result="success"} 2` + "\n",
		`handfast_reload_duration_seconds_count{result="success"} 2` + "\n",
		`handfast_worker_failures_total{reason="not_ready"} 2` + "\n",
		"handfast_watchdog_timeouts_total 2\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestRestoreImpossible: what no program can have counted is an error.
func TestRestoreImpossible(t *testing.T) {
	for _, h := range []histogram{
		{Count: 1, Buckets: make([]uint64, 3)},
		{Count: 1, Buckets: []uint64{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{Count: 1, Buckets: []uint64{1 << 63, 1 << 63, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
		{Count: 1, Sum: -1, Buckets: make([]uint64, len(parkedBuckets))},
	} {
		b := reexec.NewBundle("before")
		if err := b.Put(part, saved{Parked: map[string]histogram{"": h}}); err != nil {
			t.Fatal(err)
		}
		if err := New().Restore(b); err == nil {
			t.Errorf("%+v is restored", h)
		}
	}
}

// FuzzRestore: whatever was left, it is refused, or shown.
func FuzzRestore(f *testing.F) {
	f.Add([]byte(reexectest.Text(f, part)))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s saved
		b := reexec.NewBundle("before")
		if b.Unseal(json.RawMessage(text), part, &s) != nil || b.Put(part, s) != nil {
			return
		}
		m := New()
		if m.Restore(b) != nil {
			return
		}
		if _, err := m.registry.Gather(); err != nil {
			t.Error(err)
		}
	})
}
