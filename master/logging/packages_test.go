package logging

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestPackages: the list has each package of the program.
func TestPackages(t *testing.T) {
	const module = "github.com/handfast/handfast"
	out, err := exec.Command("go", "list", "-deps", module+"/cmd/handfast").Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range strings.Fields(string(out)) {
		if strings.HasPrefix(p, module+"/") && p != module+"/cmd/handfast" {
			want = append(want, path.Base(p))
		}
	}
	slices.Sort(want)
	if !slices.Equal(packages, want) {
		t.Errorf("the list has\n%q, the program is made of\n%q", packages, want)
	}
}

func TestWithoutPackages(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "",
		"clientip: request head":           "request head",
		"reload: supervisor: slot 1: left": "reload: slot 1: left",
		"a: fdpass: sock: b\nmaster: c":    "a: b\nc",
		"the master: it":                   "the master: it",
		"master:8080":                      "master:8080",
		"exit status 1":                    "exit status 1",
	} {
		if got := WithoutPackages(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestForOperators: no package's name is in a line, however its logger was made; and warnings say where they are explained.
func TestForOperators(t *testing.T) {
	for _, json := range []bool{false, true} {
		var out bytes.Buffer
		log := ForOperators(hclog.New(&hclog.LoggerOptions{Name: "handfast", Level: hclog.Debug, Output: &out, JSONFormat: json}), func(message string) string {
			return map[string]string{"said": "the-page"}[message]
		})
		err := fmt.Errorf("supervisor: slot 1: %w", errors.New("fdpass: closed"))
		args := []any{"err", err, "slot", 1}
		for _, l := range []hclog.Logger{log, log.Named("balancer"), log.ResetNamed("other"), log.With("why", "master: so"), Limit(log.Named("few"), Few)} {
			l.Trace("traced", args...)
			l.Debug("said", args...)
			l.Info("said", args...)
			l.Warn("said", args...)
			l.Error("said", args...)
			l.Log(hclog.Warn, "said", args...)
			l.Warn("of no page")
			l.Info("said", "last_words", "hash: the worker's own")
		}
		text := out.String()
		for part, want := range map[string]int{"slot 1: closed": 25, "supervisor:": 0, "fdpass:": 0, "master:": 0, "hash: the worker's own": 5, "traced": 0, "handfast.balancer": 7, "the-page": 15} {
			if n := strings.Count(text, part); n != want {
				t.Errorf("JSON %v: %q is there %d times, want %d", json, part, n, want)
			}
		}
		if args[1] != any(err) {
			t.Error("the caller's values were changed")
		}
	}
}
