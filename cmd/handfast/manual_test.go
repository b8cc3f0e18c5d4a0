package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/fdtest"
)

// Row C10: TestManual: the page has every flag and the sections that people look for, in lines that editors and
// patches can bear, and mandoc finds nothing to say of it.
func TestManual(t *testing.T) {
	t.Parallel()
	page := help(t, "man")
	text := strings.ReplaceAll(page, `\-`, "-")
	for _, want := range []string{".TH HANDFAST 8", ".SH EXAMPLES", ".SH FILES", ".SH SIGNALS", `.SH "EXIT STATUS"`, ".SH ENVIRONMENT", "SIGUSR2", "/run/handfast/NAME.sock"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, f := range runFlags() {
		if name := "--" + f.Names()[0]; !strings.Contains(text, name) {
			t.Errorf("no %s", name)
		}
	}
	lintManual(t, page)
}

// lintManual wants lines of at most 80 bytes, and that mandoc finds nothing to say.
func lintManual(t *testing.T, page string) {
	t.Helper()
	for line := range strings.Lines(page) {
		if len(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("%d bytes: %s", len(line), line)
		}
	}
	mandoc := exec.Command(trial.Need(t, "mandoc", "mandoc"), "-Tlint", "-Wwarning")
	mandoc.Stdin = strings.NewReader(page)
	if out, err := mandoc.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// help is what a command prints that succeeds.
func help(t *testing.T, args ...string) string {
	t.Helper()
	var out fdtest.Log
	if status := run(t.Context(), append([]string{"handfast"}, args...), &out, &out); status != exitOK {
		t.Fatalf("%q: status %d: %s", args, status, &out)
	}
	return out.String()
}

// Row C10: TestHelp: within 80 columns; each flag of run is in one group.
func TestHelp(t *testing.T) {
	for _, name := range strings.Split(commandNames(newApp(io.Discard, io.Discard)), ", ") {
		for _, text := range []string{help(t, name, "--help"), help(t, "help", name)} {
			for line := range strings.Lines(text) {
				if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > helpWidth {
					t.Errorf("%s --help: %s", name, line)
				}
			}
			if !strings.HasPrefix(text, "handfast "+name+": ") || strings.Contains(text, "`") || strings.Contains(text, "\nFlags:") && name == "run" {
				t.Error(text)
			}
		}
	}
	for _, text := range []string{help(t), help(t, "--help"), help(t, "help")} {
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > helpWidth {
				t.Error(line)
			}
		}
		if !strings.Contains(text, "  status ") {
			t.Error(text)
		}
	}
	text := help(t, "run", "--help")
	for _, f := range runFlags() {
		name := f.Names()[0]
		in := 0
		for _, g := range groups {
			in += strings.Count(" "+strings.Join(g.names, " ")+" ", " "+name+" ")
		}
		if in != 1 || strings.Count(text, "\n  --"+name+" ")+strings.Count(text, "\n  --"+name+",")+strings.Count(text, "\n  --"+name+"\n") != 1 {
			t.Errorf("--%s is in %d of the groups of help.go, want 1, and in the help", name, in)
		}
	}
	for _, want := range []string{"Behind a proxy:", "{{slot}}", "(default: 1h)", "(default: 16KiB)"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

// Row C10: TestComplete: commands, flags, and values of flags, those of running masters too.
func TestComplete(t *testing.T) {
	inRuntimeDirectory(t)
	start(t, 3, options{noAdmin: true, flags: []string{"--name", "shop"}})
	for _, c := range []struct{ words, want string }{
		{"run --route=", "--route=auto --route=master --route=kernel"},
		{"run --route=ker", "--route=kernel"},
		{"run --route = ker", "auto master kernel"}, // as bash has it
		{"run --when-down ", "wait next"},
		{"run --workers ", ""},
		{"run --config ", ""},
		{"run -n 3 --log-level ", "trace debug info warn error"},
		{"run -- --rou", ""},
		{"run node --rou", ""},
		{"check --refuse ", "http close"},
		{"stop --name ", "shop"},
		{"status --name=", "--name=shop"},
		{"run --name ", ""},
		{"drain ", "0 1 2"},
		{"drain --name shop ", "0 1 2"},
		{"drain 1 ", ""},
		{"drain --now --slot ", "0 1 2"},
		{"drain --now ", ""},
		{"drain --name none ", ""},
		{"completion ", "bash zsh fish"},
		{"proxy-config ", "nginx haproxy apache caddy traefik"},
		{"proxy-config --by ", "address cookie header:"},
		{"completion bash ", ""},
		{"man ", "handfast.yaml"},
		{"stop --", "--name --admin --no-wait --help"},
		{"nothing ", ""},
		{"--", "--help --version"},
	} {
		got := help(t, append(strings.Split(c.words, " "), completionFlag)...)
		if got := strings.Join(strings.Fields(got), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.words, got, c.want)
		}
	}
	if got := strings.Fields(help(t, "", completionFlag)); !slices.Contains(got, "status") || !slices.Contains(got, "help") {
		t.Errorf("commands: %q", got)
	}
}

// Row C10: TestChoices: what completion offers is what the flags take.
func TestChoices(t *testing.T) {
	t.Parallel()
	list := filepath.Join(t.TempDir(), "trusted")
	if err := os.WriteFile(list, []byte("loopback"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, words := range choices {
		if flagOf(runFlags(), name) == nil {
			t.Errorf("no flag --%s", name)
		}
		for _, word := range words {
			switch {
			case word == "path:":
				word += "/{x}"
			case strings.HasSuffix(word, ":"):
				word += "x"
			case strings.HasSuffix(word, "@"):
				word += list
			}
			effective(t, "--behind-proxy", "--proxy-protocol", "--watchdog", "1s", "--sd-notify", "--healthy-when", "tcp:127.0.0.1:900{slot}", "--session", "header:X", "--"+name, word) // or the test has failed
		}
	}
}

// TestCompletion: each shell completes by what the program says. What follows -- belongs to the worker, and is
// not run.
func TestCompletion(t *testing.T) {
	t.Parallel()
	self := itself(t)
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "handfast")); err != nil {
		t.Fatal(err)
	}
	scripts := map[string]string{
		"bash": `source <(handfast completion bash); COMP_WORDS=($0); [[ $0 == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _handfast; echo "${COMPREPLY[@]}"`,
		"zsh": `compdef() { :; }; compadd() { shift; print -l -- ${(P)1}; }; _files() { :; }; source <(handfast completion zsh)
			words=(${=0}); [[ $0 == *" " ]] && words+=(""); CURRENT=$#words; _handfast`,
		"fish": `handfast completion fish | source; complete -C "$argv[1]"`,
	}
	for shell, script := range scripts {
		if _, err := exec.LookPath(shell); err != nil && shell != "bash" {
			t.Logf("%s is not installed", shell)
			continue
		}
		for _, c := range []struct {
			words string
			want  []string
		}{
			{"handfast run --worker-l", []string{"--worker-link"}},
			{"handfast rel", []string{"reload"}},
			{"handfast run --route ", []string{"auto", "kernel", "master"}},
			{"handfast run --refuse cl", []string{"close"}},
			{"handfast run -- --wor", nil},
		} {
			cmd := exec.Command(shell, "-c", script, c.words)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), testRole+"=1", "HOME="+dir, "PATH="+dir+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			found := strings.Fields(string(out))
			if shell == "zsh" { // which chooses by itself among them
				last := c.words[strings.LastIndexByte(c.words, ' ')+1:]
				found = slices.DeleteFunc(found, func(word string) bool { return !strings.HasPrefix(word, last) })
			}
			slices.Sort(found)
			if err != nil || !slices.Equal(found, c.want) {
				t.Errorf("%s: %s: got %q, want %q (%v)", shell, c.words, found, c.want, err)
			}
		}
	}
}
