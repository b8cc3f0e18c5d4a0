package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master"
)

// TestContainer runs what the image of examples/container runs, with its environment, files and
// user, in namespaces of its own: the root of an image, and the user of the Kubernetes manifest.
//
// Row C11: the health check fails until the slots have workers, succeeds then, and fails when it has stopped.
func TestContainer(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for program, pkg := range map[string]string{"unshare": "util-linux", "setpriv": "util-linux", "ip": "iproute2", "gunicorn": "gunicorn"} {
		trial.Need(t, program, pkg)
	}
	file, err := os.ReadFile("../../examples/container/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	instruction := func(pattern string) string {
		m := regexp.MustCompile(`(?m)^` + pattern + `$`).FindSubmatch(file)
		if m == nil {
			t.Fatalf("no %s in the Dockerfile", pattern)
		}
		return string(m[1])
	}
	command := func(text string) string {
		var words []string
		if err := json.Unmarshal([]byte(text), &words); err != nil {
			t.Fatal(err)
		}
		return strings.Join(words, " ")
	}
	health, entry := command(instruction(`HEALTHCHECK .*CMD (.*)`)), command(instruction(`ENTRYPOINT (.*)`))
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		trial.Build(t, "github.com/handfast/handfast/cmd/handfast"): "bin/handfast",
		"../../examples/servers/app.py":                             "srv/app.py",
		"../../examples/container/handfast.yaml":                    "srv/handfast.yaml",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755)
		program(t, filepath.Join(root, to), text, 0o755)
	}
	for name, as := range map[string]string{"as root": "", "as user 1000": "setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set -all "} {
		t.Run(name, func(t *testing.T) {
			script := `
				mount --make-rprivate / && mount --bind ` + root + `/srv /srv && mount --bind ` + root + `/bin /usr/local/bin
				mount -t tmpfs tmpfs /run && mount -t tmpfs -o mode=1777 tmpfs /tmp && ip link set lo up && cd /srv
				! ` + as + health + ` || { echo healthy before it runs; exit 1; }
				` + as + entry + ` &
				n=0; until ` + as + health + `; do n=$((n+1)); [ $n -lt 300 ] || { echo never healthy; exit 1; }; sleep 0.1; done
				` + as + `handfast status --admin 127.0.0.1:9180 --ready
				` + as + `handfast reload && ` + as + `handfast stop && wait $!
				! ` + as + health + ` || { echo healthy when it has stopped; exit 1; }
				echo passed`
			cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-ec", script)
			cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin", instruction("ENV (HANDFAST_ADMIN=.*)")}
			if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), "passed\n") {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

// Row C11: TestStatusReady: status tells a probe what /readyz does, and waits for slots that scale has added.
func TestStatusReady(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	b := start(t, 1, options{worker: []string{"gate", gate}, notReady: true})
	b.awaitStatus("a slot", func(s *master.Status) bool { return len(s.Slots) == 1 })
	if text := b.begin("status", "--ready").ends(exitFailure); !strings.Contains(text, "SLOT") || !strings.Contains(text, "handfast: not ready: slot 0 is starting") {
		t.Error(text)
	}
	b.tell("status")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.await("worker ready")
	b.tell("status", "--ready", "--json")
	os.Remove(gate)
	b.tell("scale", "2")
	if text := b.begin("status", "--ready").ends(exitFailure); !strings.Contains(text, "handfast: not ready: slot 1 is starting, and new") {
		t.Error(text)
	}
	if s := b.status(); !s.Ready {
		t.Error("probes are told that it is not ready, and nobody is sent to it any more")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.awaitCount("worker ready", 2)
	b.awaitStatus("the new slot in use", func(s *master.Status) bool { return s.Slots[1].InUse })
	b.tell("status", "--ready")
	if text := b.begin("status", "--ready", "--watch").ends(exitUsage); !strings.Contains(text, "want one of them") {
		t.Error(text)
	}
}
