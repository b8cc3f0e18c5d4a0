package main

import (
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

// TestSeveralProcesses: a server with processes of its own in each slot is named, with what would do.
// Row C2.
func TestSeveralProcesses(t *testing.T) {
	t.Parallel()
	trial.Need(t, "gunicorn", "gunicorn")
	address := trial.FreeAddress(t)
	b := runs(t, "--listen", address, "--workers", "2", "--", "gunicorn", "-w", "2", "-b", address, "wsgiref.simple_server:demo_app")
	b.awaitCount("worker ready", 2)
	b.says("slot is served by several processes", `"processes":2`, "gunicorn -w 1", `"@level":"warn"`)
	if n := len(b.log("slot is served by several processes")); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}
