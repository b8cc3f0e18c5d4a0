package metrics

import (
	"encoding/json"
	"errors"
	"github.com/handfast/handfast/master/balancer"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/supervisor"
)

// scrape returns what Prometheus reads.
func scrape(t *testing.T, m *Metrics, s master.Status) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(func() master.Status { return s }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	return w.Body.String()
}

// TestCounts: what the hooks are told is counted, under its reason.
func TestCounts(t *testing.T) {
	m := New()
	m.Outcome(balancer.Outcome{Parked: 30 * time.Millisecond})
	m.Outcome(balancer.Outcome{})
	m.Outcome(balancer.Outcome{Err: clientip.ErrPartial, Parked: time.Second})
	m.Outcome(balancer.Outcome{Err: errors.New("unheard of")})
	m.Event(supervisor.Event{Kind: supervisor.Reloading})
	m.Event(supervisor.Event{Kind: supervisor.Reloaded})
	m.Event(supervisor.Event{Kind: supervisor.Reloading})
	m.Event(supervisor.Event{Kind: supervisor.ReloadFailed})
	m.Event(supervisor.Event{Kind: supervisor.WorkerExited, Was: supervisor.Serving, Exit: supervisor.Exit{Code: 1}})
	m.Event(supervisor.Event{Kind: supervisor.WorkerExited, Was: supervisor.Serving}) // it had enough
	m.Event(supervisor.Event{Kind: supervisor.WorkerExited, Was: supervisor.Draining})
	m.Event(supervisor.Event{Kind: supervisor.WorkerNotReady})
	text := scrape(t, m, master.Status{})
	for _, want := range []string{
		"handfast_parked_seconds_count 1\n",
		`handfast_parked_seconds_bucket{le="0.02"} 0` + "\n",
		`handfast_parked_seconds_bucket{le="0.1"} 1` + "\n",
		`handfast_refused_connections_total{reason="request_incomplete"} 1` + "\n",
		`handfast_refused_connections_total{reason="other"} 1` + "\n",
		`handfast_refused_connections_total{reason="slot_empty"} 0` + "\n",
		`handfast_reloads_total{result="success"} 1` + "\n",
		`handfast_reloads_total{result="failure"} 1` + "\n",
		`handfast_reload_duration_seconds_count{result="failure"} 1` + "\n",
		`handfast_worker_failures_total{reason="exited"} 1` + "\n",
		`handfast_worker_failures_total{reason="not_ready"} 1` + "\n",
		`handfast_worker_failures_total{reason="left"} 0` + "\n",
		"process_open_fds ", "process_max_fds ", "go_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestStatus: what is known is shown, and what is not is not there.
func TestStatus(t *testing.T) {
	seven, nine, waiting := uint64(7), uint64(9), 3
	text := scrape(t, New(), master.Status{
		Version: "v1", Ready: true, Generation: 4, Started: time.Unix(1000, 0),
		Reload: &master.ReloadStatus{},
		Slots: []master.SlotStatus{
			{Slot: 0, State: "serving", Worker: &master.WorkerStatus{Generation: 4, State: "serving", Started: time.Unix(2000, 0), Open: &nine, HandsBack: new(true)}, HandedOff: &seven, Restarts: 2, Parked: 5},
			{Slot: 1, State: "empty", Queue: &waiting, Refused: 6, Open: &waiting, Handshakes: &nine},
		},
		Fullest:  &master.FullestSlot{Slot: 1, Share: 0.75},
		Draining: []master.WorkerStatus{{Generation: 2, State: "lingering"}, {Generation: 3, State: "lingering"}, {Generation: 2, State: "lingering"}, {Generation: 3, State: "draining"}, {State: "stopping"}},
		Totals:   master.Totals{Accepted: &nine},
	})
	for _, want := range []string{
		`handfast_build_info{goversion="go`, `version="v1"} 1`,
		"handfast_ready 1\n", "handfast_start_time_seconds 1000\n", "handfast_accepted_connections_total 9\n",
		"handfast_slots 2\n", "handfast_draining_workers 2\n", "handfast_generation 4\n", "handfast_reload_in_progress 1\n",
		`handfast_workers{generation="2",state="lingering"} 2` + "\n", `handfast_workers{generation="3",state="lingering"} 1` + "\n", `handfast_workers{generation="4",state="serving"} 1` + "\n",
		`handfast_worker_state{slot="0",state="serving"} 1` + "\n", `handfast_worker_state{slot="0",state="empty"} 0` + "\n",
		`handfast_worker_state{slot="1",state="empty"} 1` + "\n",
		`handfast_worker_generation{slot="0"} 4` + "\n", `handfast_worker_start_time_seconds{slot="0"} 2000` + "\n",
		`handfast_worker_hands_back{slot="0"} 1` + "\n", `handfast_worker_open_connections{slot="0"} 9` + "\n", `handfast_worker_restarts_total{slot="0"} 2` + "\n",
		`handfast_handed_off_connections_total{slot="0"} 7` + "\n", `handfast_slot_parked_connections{slot="0"} 5` + "\n",
		`handfast_slot_refused_connections_total{slot="1"} 6` + "\n", `handfast_slot_queued_connections{slot="1"} 3` + "\n",
		"handfast_fullest_slot_share 0.75\n", `handfast_slot_open_connections{slot="1"} 3` + "\n", `handfast_slot_handshakes_total{slot="1"} 9` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, unknown := range []string{"taken_back", `handed_off_connections_total{slot="1"`, `worker_generation{slot="1"`, `queued_connections{slot="0"`, `slot_open_connections{slot="0"`, `slot_handshakes_total{slot="0"`} {
		if strings.Contains(text, unknown) {
			t.Errorf("%s is not known", unknown)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestDashboard: examples/grafana asks for what there is.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../examples/grafana/handfast.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil || len(dashboard.Panels) < 10 {
		t.Fatalf("%d panels, %v", len(dashboard.Panels), err)
	}
	one := uint64(1)
	queue := 1
	there := scrape(t, New(), master.Status{
		Slots: []master.SlotStatus{{State: "serving", Worker: &master.WorkerStatus{Open: &one}, HandedOff: &one, Queue: &queue, MailboxFull: &one}},
	})
	name := regexp.MustCompile(`\b(handfast|process)_[a-z_]+`)
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			found := name.FindAllString(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("%s: %q asks for nothing of ours", panel.Title, target.Expr)
			}
			for _, metric := range found {
				if !strings.Contains(there, "\n"+metric+"{") && !strings.Contains(there, "\n"+metric+" ") {
					t.Errorf("%s: there is no %s", panel.Title, metric)
				}
			}
		}
	}
}
