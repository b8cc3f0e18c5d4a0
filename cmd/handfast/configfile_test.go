package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// writeConfig makes a configuration file.
func writeConfig(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "handfast.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// runCheck runs `handfast check` and returns what it says.
func runCheck(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	var b bytes.Buffer
	status = run(t.Context(), append([]string{"handfast", "check"}, args...), &b, &b)
	return b.String(), status
}

// effective returns what check prints of the settings, without trying the machine.
func effective(t *testing.T, args ...string) string {
	t.Helper()
	var out fdtest.Log
	app := newApp(&out, &out)
	args = append([]string{"handfast", "check"}, args...)
	args = arrange(app, args)
	app.Command("check").Action = func(c *cli.Context) error {
		a, err := readAll(c, &out)
		if err != nil {
			return err
		}
		return writeEffective(&out, c, a)
	}
	parsing.Lock()
	defer parsing.Unlock()
	if err := app.RunContext(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestConfigPrecedence: a flag comes before its environment variable, that before the file,
// that before the default; and check says which it was.
func TestConfigPrecedence(t *testing.T) {
	path := writeConfig(t, "workers: 5\nmax-retries: 5\nretry-delay: 5s\nlisten: ['127.0.0.1:0', '127.0.0.2:0']\ncommand: [true, '-x']\n")
	t.Setenv("HANDFAST_MAX_RETRIES", "6")
	t.Setenv("HANDFAST_WORKERS", "6")
	out := effective(t, "-c", path, "-n", "7", "--log-json")
	for _, want := range []string{
		"workers: 7 # --workers\n",
		"max-retries: 6 # $HANDFAST_MAX_RETRIES\n",
		"retry-delay: 5s # " + path + ":3\n",
		"listen: ['127.0.0.1:0', '127.0.0.2:0'] # " + path + ":4\n",
		"log-json: true # --log-json\n",
		"drain-timeout: 1h # default\n",
		"command: [\"true\", -x] # " + path + ":5\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out = effective(t, "-c", path, "--", "false", "-n")
	if want := "command: [\"false\", -n] # command line\n"; !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
}

// TestCheckRepeats: what check prints is a configuration file that says the same.
func TestCheckRepeats(t *testing.T) {
	settings := effective(t, "--behind-proxy", "--header-limit", "2KiB", "--retry-delay", "90s", "--", "server", "a b", "8080", "")
	again := effective(t, "-c", writeConfig(t, settings))
	values := func(text string) (values []string) {
		for line := range strings.Lines(text) {
			value, _, _ := strings.Cut(line, " #")
			values = append(values, strings.TrimSpace(value))
		}
		return values
	}
	if !slices.Equal(values(settings), values(again)) || len(values(again)) < 20 {
		t.Errorf("first:\n%s\nthen:\n%s", settings, again)
	}
}

// TestConfigErrors: each says where the mistake is.
func TestConfigErrors(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"worker: 4", `:1: "worker" is no name of a flag`},
		{"\nworkers: many", ":2: workers: "},
		{"workers: [1, 2]", ":1: workers: want one value"},
		{"workers: 4\nworkers: 5", "line 2: workers is there already, in line 1"},
		{"workers:", "line 1: workers: want a value"},
		{"workers: {a: b}", "line 1: workers: want a value"},
		{"- workers", "line 1: want names and values"},
		{"workers: 4\n---\nworkers: 5", "one document"},
		{"a: b: c", "mapping values"},
		{"config: other.yaml", `"config" is no name of a flag`},
		{"retry-delay: 100", ":1: retry-delay: "},
		{"retry-delay: 0s", "--retry-delay 0s: want at least 1ms (--retry-delay is from "},
		{"behind-proxy: maybe", ":1: behind-proxy: "},
		{"command: gunicorn -b :8080", "want a list, such as [gunicorn, -b, :8080]"},
		{strings.Repeat("#", maxConfigFile+1), "larger than"},
	} {
		path := writeConfig(t, c.text)
		if out, status := runCheck(t, "--config", path); status != exitUsage || !strings.Contains(out, c.says) || !strings.Contains(out, path) {
			t.Errorf("%.30q: status %d, does not say %q: %s", c.text, status, c.says, out)
		}
	}
	if out, status := runCheck(t, "--config", "/no/such/file"); status != exitUsage || !strings.Contains(out, "no such file") {
		t.Errorf("status %d: %s", status, out)
	}
	t.Setenv("HANDFAST_REFUSE", "rudely")
	if out, status := runCheck(t); status != exitUsage || !strings.Contains(out, "(--refuse is from $HANDFAST_REFUSE)") {
		t.Errorf("status %d: %s", status, out)
	}
}

// TestConfigRun: run takes what the file says.
func TestConfigRun(t *testing.T) {
	t.Setenv("HANDFAST_CONFIG", writeConfig(t, "# networks\nipv6-prefix: 56\n"))
	b := start(t, 1, options{})
	if a := b.mustGet(source(0), "/env"); !strings.Contains(a.body, "HANDFAST_IPV6_PREFIX=56\n") {
		t.Errorf("the file was not taken: %s", a.body)
	}
}

// TestCheckMachine: what is too small, and what to do about it.
func TestCheckMachine(t *testing.T) {
	t.Parallel()
	out, status := runCheck(t, "--max-parked", "2000000000", "--listen", "192.0.2.1:8080", "--", "no-such-program")
	if status != exitFailure {
		t.Errorf("status %d", status)
	}
	for _, c := range []struct{ what, says string }{
		{"open files", `raise it with ulimit -n or LimitNOFILE=`},
		{"--listen 192.0.2.1:8080", "cannot assign requested address"},
		{"command", "not found"},
	} {
		if !strings.Contains(out, c.what) || !strings.Contains(out, c.says) {
			t.Errorf("%s: does not say %q: %s", c.what, c.says, out)
		}
	}
	b := start(t, 1, options{})
	if err := tryAddress(t.Context(), b.addr, false); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("does not say that the port is in use: %v", err)
	}
	for _, port := range []int{8080, 9148, 9149, 9150} {
		if !isReserved("7,8080,9148-9150", port) || isReserved("7,8081,9151-9160,", port) || isReserved("", port) {
			t.Errorf("reserved ports, %d", port)
		}
	}
}

// FuzzParseConfig: any file is read or refused, within bounds.
func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{"", "workers: 4", "listen: [a, b]\ncommand:\n  - x\n", "a: &x b\nc: *x", "# only\n", "{}", "? [a]\n: b", "a: !!binary x", "---\n---\n", "\x00", "- a"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		settings, err := parseConfig(text)
		if err != nil && settings != nil {
			t.Error("both settings and an error")
		}
		seen := map[string]bool{}
		for _, s := range settings {
			if seen[s.name] || s.line < 1 {
				t.Errorf("%+v", s)
			}
			seen[s.name] = true
		}
	})
}
