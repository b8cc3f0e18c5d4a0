package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// build makes the packages of a version for this processor, from sources at root.
func build(t *testing.T, root, version string) string {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1767225600")
	out := filepath.Join(t.TempDir(), "dist")
	if err := run(root, out, version, []string{runtime.GOARCH}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestReproducible: the same sources in two places give the same bytes.
func TestReproducible(t *testing.T) {
	other := t.TempDir()
	copied := exec.Command("sh", "-c", `git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$0"`, other)
	copied.Dir = "../.."
	if said, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	first, second := build(t, "../..", "0.0.1"), build(t, other, "0.0.1")
	names, err := filepath.Glob(filepath.Join(first, "*"))
	if err != nil || len(names) != 6 {
		t.Fatalf("%q, %v", names, err)
	}
	for _, name := range names {
		a, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, filepath.Base(name)))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs from the one of the same sources elsewhere: %v", filepath.Base(name), err)
		}
	}
	check := exec.Command("sha256sum", "--check", "--quiet", "SHA256SUMS")
	check.Dir = first
	if said, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, said)
	}
}

// script runs a script of testdata as root in namespaces of its own for mounts, processes and network, so that
// nothing of it stays.
func script(t *testing.T, name string, needs []string, args ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range append(needs, "unshare", "ip") {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	bounded, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(bounded, "unshare", append([]string{"--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-eu", "testdata/" + name, t.TempDir()}, args...)...)
	cmd.WaitDelay = time.Second // what is left in its namespaces ends with it
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(said), "done\n") {
		t.Fatalf("%v:\n%s", err, said)
	}
}

// TestInstalled: the .deb and the .rpm are installed over a copy of this machine, run, replaced by a newer version while
// a server runs, which goes on, and removed.
func TestInstalled(t *testing.T) {
	older, newer := build(t, "../..", "0.0.1"), build(t, "../..", "0.0.2-dev.20260101.0")
	for _, test := range []struct{ kind, program string }{{"deb", "dpkg"}, {"rpm", "rpm"}} {
		t.Run(test.kind, func(t *testing.T) {
			one := func(dir string) string {
				found, err := filepath.Glob(filepath.Join(dir, "*."+test.kind))
				if err != nil || len(found) != 1 {
					t.Fatalf("%q, %v", found, err)
				}
				return found[0]
			}
			server, err := filepath.Abs("../../examples/hello/hello.py")
			if err != nil {
				t.Fatal(err)
			}
			script(t, "install.sh", []string{test.program, "python3", "curl"}, test.kind, one(older), one(newer), server)
		})
	}
}

// TestImage: the image's program runs in a container, and its health check fails until a worker serves.
func TestImage(t *testing.T) {
	out := build(t, "../..", "0.0.1")
	worker := filepath.Join(t.TempDir(), "hello")
	compile := exec.Command("go", "build", "-o", worker, "./examples/hello")
	compile.Dir, compile.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if said, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	image, err := filepath.Glob(filepath.Join(out, "*.image.tar"))
	if err != nil || len(image) != 1 {
		t.Fatalf("%q, %v", image, err)
	}
	script(t, "container.sh", []string{"crun", "python3"}, image[0], worker)
}
