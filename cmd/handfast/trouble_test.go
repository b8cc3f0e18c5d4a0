package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestHelpTrouble: help explains each row of TROUBLESHOOTING.md, by its message as it is, by its anchor and by the name
// that the log has, which is shorter.
func TestHelpTrouble(t *testing.T) {
	rows := strings.Count(troubleshootingPage, "<a id=")
	if len(troubles()) != rows || rows < 50 {
		t.Errorf("%d messages are read of %d", len(troubles()), rows)
	}
	taken := make(map[string]bool)
	for _, row := range troubles() {
		name := troubleName(row.message)
		if len(name) > 60 || taken[name] || name == "" || !strings.HasPrefix(row.anchor, name) || row.anchor != anchorOf(row.message) {
			t.Errorf("%q is called %q", row.message, name)
		}
		taken[name] = true
		want := help(t, append([]string{"help"}, strings.Fields(row.message)...)...)
		flat := strings.Join(strings.Fields(want), " ")
		for _, part := range []string{row.message, "Cause: " + row.cause, "Remedy: " + row.remedy} {
			if !strings.Contains(flat, strings.Join(strings.Fields(part), " ")) {
				t.Errorf("%s: no %q in %s", name, part, want)
			}
		}
		for _, typed := range []string{name, row.anchor} {
			if got := help(t, "help", typed); got != want {
				t.Errorf("help %s: %s, want %s", typed, got, want)
			}
		}
		for line := range strings.Lines(want) {
			if utf8.RuneCountInString(line) > helpWidth+1 && strings.Contains(line, " ") || strings.ContainsAny(line, "`") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
	for text, want := range map[string]string{
		"worker exited": "worker-exited", "nothing of the kind": "", "accept paused: ": "accept-paused",
	} {
		if got := troubleName(text); got != want {
			t.Errorf("%q is called %q, want %q", text, got, want)
		}
	}
	if got, want := troubleIn("listen tcp :80: bind: permission denied: run as root"), "permission-denied"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := help(t, "help", "log", "not", "complete"); strings.Count(got, "  handfast help log-not-complete-") != 2 {
		t.Error(got)
	}
}

// TestHelpUnknown: what help does not know is a mistake, and what may have been meant is suggested.
func TestHelpUnknown(t *testing.T) {
	for typed, want := range map[string]string{
		"relod-failed": "did you mean handfast help reload-failed?",
		"relaod":       "did you mean handfast help reload?",
		"concept":      "did you mean handfast help concepts?",
		"fnord":        "What the log says at level info is no trouble: 'handfast help concepts'",
		"route-chosen": "What the log says at level info is no trouble: 'handfast help concepts'",
		"...":          "'handfast help troubleshooting' has each warning and error",
		"mailbox":      `help has nothing of "mailbox" by itself; it is in handfast help concepts`,
	} {
		var out, err bytes.Buffer
		if status := run(t.Context(), []string{"handfast", "help", typed}, &out, &err); status != exitUsage || !strings.Contains(err.String(), want) || out.Len() > 0 {
			t.Errorf("help %s: status %d, %s%s, want %q", typed, status, &out, &err, want)
		}
	}
}
