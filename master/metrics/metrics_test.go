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
			{Slot: 0, State: "serving", Worker: &master.WorkerStatus{Generation: 4, State: "serving", Started: time.Unix(2000, 0), Open: &nine, Accepted: &seven, HandsBack: new(true)}, HandedOff: &seven, Restarts: 2, Parked: 5},
			{Slot: 1, State: "empty", Queue: &waiting, Refused: 6, Open: &waiting, Handshakes: &nine},
		},
		Fullest:  &master.FullestSlot{Slot: 1, Share: 0.75},
		Draining: []master.WorkerStatus{{Generation: 2, State: "lingering"}, {Generation: 3, State: "lingering"}, {Generation: 2, State: "lingering"}, {Generation: 3, State: "draining"}, {State: "stopping"}},
		Totals:   master.Totals{Accepted: &nine},
		Upgrade:  master.UpgradeStatus{Count: 8},
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
		"handfast_upgrades_total 8\n", `handfast_worker_accepted_connections_total{slot="0"} 7` + "\n",
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

// notOnDashboard are metrics that examples/grafana leaves out on purpose.
var notOnDashboard = map[string]string{
	"handfast_worker_generation": "handfast_workers says how many workers run which generation",
	"handfast_worker_hands_back": "it is a property of the configuration and of the worker's program, and not of the hour",
}

// everything is a status of which each metric shows something.
func everything() master.Status {
	one, few := uint64(1), 1
	return master.Status{
		Slots: []master.SlotStatus{{State: "serving", HandedOff: &one, HandedBack: &one, Handshakes: &one, Queue: &few, Open: &few, MailboxFull: &one,
			Worker: &master.WorkerStatus{Open: &one, MaxOpen: &few, Accepted: &one, Passed: &one, HandsBack: new(true), Memory: new(int64(1))}}},
		Totals:   master.Totals{Accepted: &one, TakenBack: &one},
		Largest:  &master.LargestClient{},
		Fullest:  &master.FullestSlot{},
		Sessions: &master.SessionTotals{},
	}
}

// TestDashboard: examples/grafana asks for all that there is, but for what it leaves out on purpose, and for nothing else.
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
	m := New()
	m.LinesLeftOut("log", func() uint64 { return 0 })
	m.Event(supervisor.Event{Kind: supervisor.Reloading})
	m.Event(supervisor.Event{Kind: supervisor.Reloaded})
	there := make(map[string]bool) // and whether it is asked for
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(scrape(t, m, everything()), -1) {
		series := []string{""}
		if match[2] == "histogram" {
			series = []string{"_bucket", "_sum", "_count"}
		}
		for _, end := range series {
			there[match[1]+end] = false
		}
	}
	for _, name := range defined(t) {
		_, single := there[name]
		if _, histogram := there[name+"_bucket"]; !single && !histogram {
			t.Errorf("%s is not in what is scraped here: everything() lacks it", name)
		}
	}
	name := regexp.MustCompile(`\b(handfast|process)_[a-z_]+`)
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			found := name.FindAllString(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("%s: %q asks for nothing of ours", panel.Title, target.Expr)
			}
			for _, metric := range found {
				if _, ok := there[metric]; !ok {
					t.Errorf("%s: there is no %s", panel.Title, metric)
				}
				there[metric] = true
			}
		}
	}
	for metric, asked := range there {
		family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(metric, "")
		asked = asked || there[family+"_bucket"] || there[family+"_sum"]
		if leftOut := notOnDashboard[metric] != ""; strings.HasPrefix(metric, "handfast_") && asked == leftOut {
			t.Errorf("%s: it is on the dashboard: %v, left out on purpose: %v", metric, asked, leftOut)
		}
	}
}

// defined returns the names of all metrics that this package's sources define.
func defined(t *testing.T) (names []string) {
	t.Helper()
	for _, file := range []string{"metrics.go", "status.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`(?:desc|newCounters|newHistograms)\("([a-z_]+)"|Name: "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
			names = append(names, namespace+"_"+match[1]+match[2])
		}
	}
	if len(names) < 40 {
		t.Errorf("%d metrics", len(names))
	}
	return names
}
