package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestManual: the page has every flag, and what run says of signals.
func TestManual(t *testing.T) {
	var page bytes.Buffer
	if status := run(t.Context(), []string{"handfast", "man"}, &page, &page); status != exitOK {
		t.Fatalf("status %d: %s", status, &page)
	}
	text := strings.ReplaceAll(page.String(), `\-`, "-")
	for _, want := range []string{".TH handfast 8", "SIGUSR2", "Exit status"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, f := range runFlags() {
		if name := "--" + f.Names()[0]; !strings.Contains(text, name) {
			t.Errorf("no %s", name)
		}
	}
}

// TestCompletion: bash completes commands and flags by what the program says.
func TestCompletion(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "handfast")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words string
		want  []string
	}{
		{"handfast run --worker-", []string{"--worker-link"}},
		{"handfast rel", []string{"reload"}},
		{"handfast run -- --wor", nil}, // what follows is the worker's
	} {
		cmd := exec.Command("bash", "-c", `source <(handfast completion bash); COMP_WORDS=($0); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _handfast; echo "${COMPREPLY[@]}"`, c.words)
		cmd.Env = append(os.Environ(), testRole+"=1", "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		found := strings.Fields(string(out))
		slices.Sort(found)
		if err != nil || !slices.Equal(found, c.want) {
			t.Errorf("%s: got %q, want %q (%v)", c.words, found, c.want, err)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		var script bytes.Buffer
		if status := run(t.Context(), []string{"handfast", "completion", shell}, &script, &script); status != exitOK || !strings.Contains(script.String(), "handfast") {
			t.Errorf("%s: status %d: %s", shell, status, &script)
		}
	}
}
