package main_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// step is a command of README.md, and what it shows of its output.
type step struct{ command, output string }

// starts returns the consoles of README.md that run handfast.
func starts(t *testing.T) (found [][]step) {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(readme), "\n```console\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		var steps []step
		for line := range strings.Lines(block) {
			if command, is := strings.CutPrefix(line, "$ "); is {
				steps = append(steps, step{command: strings.TrimSpace(command)})
			} else if len(steps) > 0 {
				steps[len(steps)-1].output += line
			}
		}
		if strings.Contains(block, "handfast run ") {
			found = append(found, steps)
		}
	}
	return found
}

// TestReadmeStarts: the first commands of README.md do what it shows, on another port.
func TestReadmeStarts(t *testing.T) {
	all := starts(t)
	if len(all) != 3 {
		t.Fatalf("README.md has %d starts, want those of Python, Node and Go", len(all))
	}
	for _, steps := range all {
		t.Run(steps[len(steps)-1].command, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(steps[0].command, "node") {
				trial.Need(t, "node", "nodejs")
			}
			walk(t, steps)
		})
	}
}

// walk runs the steps one after the other, and handfast beside them.
func walk(t *testing.T, steps []step) {
	trial.Need(t, "curl", "curl")
	program := trial.Build(t, "github.com/handfast/handfast/cmd/handfast")
	address := trial.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	bin := t.TempDir()
	built := filepath.Join(bin, "hello")
	if err := os.Symlink(program, filepath.Join(bin, "handfast")); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "PORT="+port, "RUNTIME_DIRECTORY="+t.TempDir(), "PATH="+bin+":"+os.Getenv("PATH"))
	elsewhere := strings.NewReplacer("handfast run ", "handfast run --listen "+address+" ", "127.0.0.1:8080", address, "-o hello ", "-o "+built+" ", "./hello", built)

	var handfast *trial.Process
	for _, s := range steps {
		cmd := exec.Command("sh", "-c", elsewhere.Replace(s.command))
		cmd.Env = environment
		if strings.HasPrefix(s.command, "handfast run ") {
			cmd = exec.Command("sh", "-c", "exec "+elsewhere.Replace(s.command))
			cmd.Env = append(environment, "HANDFAST_LOG_JSON=true")
			handfast = trial.StartCmd(t, cmd)
			handfast.AwaitReady(4)
			continue
		}
		var failure strings.Builder
		cmd.Stderr = &failure
		output, err := cmd.Output()
		if err != nil || s.output != "" && string(output) != s.output {
			t.Fatalf("%s: %v, %s\n%s\nREADME.md shows\n%s", s.command, err, &failure, output, s.output)
		}
	}
	handfast.Stop()
}
