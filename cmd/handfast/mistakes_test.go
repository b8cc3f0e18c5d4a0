package main

import (
	"strings"
	"testing"
)

// Row C9: TestMistakes: a message names the flag, the value and what is wanted, and suggests what was
// meant; the status is 2.
func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		args, env, file string
		says            string
	}{
		{args: "run --wrokers 3 -- true", says: "run: no flag --wrokers; did you mean --workers?"},
		{args: "run --drain_timeout 3s -- true", says: "no flag --drain_timeout; did you mean --drain-timeout?"},
		{args: "run --port 80 -- true", says: "no flag --port; 'handfast run --help' lists them"},
		{args: "status --workers 3", says: "status: no flag --workers: it is one of run: handfast run --workers"},
		{args: "--workers 3 -- true", says: "no flag --workers: it is one of run: handfast run --workers"},
		{args: "statsu", says: `no command "statsu"; did you mean handfast status?`},
		{args: "true --x", says: `no command "true"; to serve with it: handfast run -- true --x`},
		{args: "help statsu", says: `help has nothing of "statsu"; did you mean handfast help status?`},
		{args: "run -x -- true", says: "run: no flag -x; 'handfast run --help' lists them"},
		{args: "run -n x -- true", says: `run: -n "x": want a whole number`},
		{args: "no-such-thing", says: `no command "no-such-thing"; there are run, status`},
		{args: "run --workers four -- true", says: `--workers "four": want a whole number; did you mean 4?`},
		{args: "run --workers 99999999999999999999 -- true", says: `--workers "99999999999999999999": want a smaller number`},
		{args: "run --workers 0 -- true", says: "--workers 0: want 1 to "},
		{args: "run --workers", says: "--workers: want a whole number"},
		{args: "run --drain-timeout 10 -- true", says: `--drain-timeout "10": want a time with its unit, such as 500ms, 10s or 1m30s; did you mean 10s?`},
		{args: "run --drain-timeout soon -- true", says: `--drain-timeout "soon": want a time with its unit, such as 500ms, 10s or 1m30s`},
		{args: "run --drain-timeout -1s -- true", says: "--drain-timeout -1s: want at least 0s"},
		{args: "run --hash-seed x -- true", says: `--hash-seed "x": want a whole number`},
		{args: "run --behind-proxy=yes -- true", says: `--behind-proxy "yes": want true or false; did you mean true?`},
		{args: "run --header-limit 16kb -- true", says: `--header-limit "16kb": want 1024 to `},
		{args: "run --header-limit 16kb -- true", says: `did you mean 16KiB?`},
		{args: "run --route kernal -- true", says: `--route "kernal": want auto, master or kernel; did you mean kernel?`},
		{args: "run --log-level loud -- true", says: `--log-level "loud": want trace, debug, info, warn or error`},
		{args: "run --listen 24010 -- true", says: `--listen "24010": want HOST:PORT, or :PORT for all addresses; did you mean :24010?`},
		{args: "run --listen= -- true", says: `--listen "": want HOST:PORT, or :PORT for all addresses`},
		{args: "run --listen localhost -- true", says: `did you mean localhost:8080?`},
		{args: "run --listen ::1:80 -- true", says: `did you mean [::1]:80?`},
		{args: "run --listen ::1 -- true", says: `did you mean [::1]:8080?`},
		{args: "run --listen http://localhost:80/ -- true", says: `did you mean localhost:80?`},
		{args: "run --listen :70000 -- true", says: "want a port from 1 to 65535"},
		{args: "run --listen :x-y-z -- true", says: `want a port's number after the last colon, not "x-y-z"`},
		{args: "run --admin 9000 -- true", says: "did you mean :9000?"},
		{args: "run -- true", env: "HANDFAST_WORKRES=3", says: "HANDFAST_WORKRES=3: no flag has this variable; did you mean HANDFAST_WORKERS?"},
		{args: "run -- true", env: "HANDFAST_WORKERS=four", says: `HANDFAST_WORKERS="four": want a whole number; did you mean 4?`},
		{args: "run -- true", env: "HANDFAST_KILL_TIMEOUT=5", says: `HANDFAST_KILL_TIMEOUT="5": want a time with its unit`},
		{args: "run -- true", file: "drain_timeout: 3s", says: `:1: "drain_timeout" is no name of a flag; did you mean drain-timeout?`},
		{args: "run -- true", file: "workers: four", says: `:1: workers: "four": want a whole number; did you mean 4?`},
		{args: "run -- true", file: "kill-timeout: 5", says: `did you mean 5s?`},
		{args: "run -- true", file: "listen: 24010", says: `--listen "24010": want HOST:PORT, or :PORT for all addresses; did you mean :24010? (--listen is from `},
		{args: "run -- true", file: "listen: ''", says: `--listen "": want HOST:PORT`},
	} {
		t.Run(c.args+c.env+c.file, func(t *testing.T) {
			if name, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(name, value)
			}
			if c.file != "" {
				t.Setenv("HANDFAST_CONFIG", writeConfig(t, c.file))
			}
			text := begin(t, strings.Fields(c.args)...).ends(exitUsage)
			if !strings.Contains(text, c.says) {
				t.Errorf("no %q in %s", c.says, text)
			}
		})
	}
}

// Rows C8 and C9: TestAllMistakes: all of them are named at once.
func TestAllMistakes(t *testing.T) {
	t.Setenv("HANDFAST_WORKRES", "3")
	config := writeConfig(t, "drain_timeout: 3s\nworkers: four\nlisten: 24010\nroute: kernal")
	text := begin(t, "check", "--config", config, "--kill-timeout", "-1s", "--admin", "9").ends(exitUsage)
	for _, want := range []string{"HANDFAST_WORKERS?", "drain-timeout?", "did you mean 4?", ":24010?", "kernel?", "--kill-timeout -1s", "did you mean :9?"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("not one %q in %s", want, text)
		}
	}
}

// Row C9: TestVariables: those that resemble no flag's are warned of, and those that others set are
// nobody's mistake.
func TestVariables(t *testing.T) {
	for _, name := range []string{"HANDFAST_SLOT", "HANDFAST_FD", "HANDFAST_SERVICE_HOST", "HANDFAST_PORT_8080_TCP_ADDR", "HANDFAST_PORT", "HANDFAST_SOMETHING_ELSE"} {
		t.Setenv(name, "1")
	}
	t.Setenv("HANDFAST_LISTEN", "")
	a := begin(t, "check")
	<-a.ended
	if text := a.String(); a.status == exitUsage || !strings.Contains(text, "variables in the environment that no flag reads: names=HANDFAST_SOMETHING_ELSE help=") || strings.Contains(text, "HANDFAST_SLOT") || strings.Contains(text, "HANDFAST_PORT") || !strings.Contains(text, "listen: [':8080']") {
		t.Errorf("status %d: %s", a.status, text)
	}
}

// TestNearest: letters that changed places, are missing or too many; and nothing far-fetched.
func TestNearest(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"workers", "workers", 0}, {"wrokers", "workers", 1}, {"worker", "workers", 1}, {"statsu", "status", 1}, {"abc", "xyz", 3}, {"ca", "abc", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("from %q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
	words := flagNames(runFlags())
	for typed, want := range map[string]string{"wrokers": "workers", "Workers": "workers", "drain_timeout": "drain-timeout", "logjson": "log-json", "port": "", "x": "", "": "", "kye": "key"} {
		if got := nearest(typed, words); got != want {
			t.Errorf("%q is near %q, want %q", typed, got, want)
		}
	}
}
