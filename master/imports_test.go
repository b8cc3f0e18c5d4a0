package master

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/handfast/handfast/"

// layers says which of our packages each package may import, besides fdpass/sock, which all may. Imports point one
// way: nothing that the master is made of knows the master, no link knows another one or a route, and
// the supervisor knows neither routes nor links. What master and worker must agree on is in fdpass.
var layers = map[string]string{
	"hash":              "",
	"fdpass":            "",
	"fdpass/sock":       "",
	"fdpass/fdtest":     "fdpass",
	"fdpass/forwarded":  "hash fdpass",
	"worker":            "hash fdpass fdpass/forwarded",
	"worker/workertest": "hash fdpass worker",

	"master": "hash fdpass fdpass/forwarded master/...",

	"master/balancer":    "hash fdpass fdpass/forwarded master/clientip master/fdlimit master/logging master/reexec master/unixsocket",
	"master/kernelroute": "hash fdpass master/balancer master/reuseport master/supervisor master/link/listening master/asuser master/logging master/pgroup master/reexec master/sockdiag",
	"master/clientip":    "hash fdpass fdpass/forwarded master/reexec",
	"master/reuseport":   "hash fdpass master/reexec master/sockdiag",
	"master/supervisor":  "fdpass master/asuser master/pgroup master/reexec",

	// Links: one does not know another.
	"master/link/mailbox":      ofLinks,
	"master/link/nodeipc":      ofLinks + " master/clientip",
	"master/link/activation":   ofLinks + shared,
	"master/link/bindswap":     ofLinks + shared + " master/link/foreign master/link/seccomp",
	"master/link/acceptinject": ofLinks + shared + " master/link/foreign master/link/seccomp",
	"master/link/foreign":      "master/reexec master/link/launch master/link/seccomp",
	"master/link/foreigntest":  "fdpass/fdtest master/supervisor",
	"master/link/launch":       "fdpass master/supervisor master/openconns master/reexec master/link/seccomp",
	"master/link/listening":    "master/pgroup master/sockdiag",
	"master/link/seccomp":      "fdpass master/reexec master/link/listening master/pgroup",

	"master/reexec":            "master/pgroup master/reexec/early",
	"master/reexec/early":      "",
	"master/reexec/reexectest": "fdpass master/reexec",
	"master/output":            "master/supervisor master/reexec",
	"master/systemd":           "master/supervisor master/unixsocket",
	"master/sdnotify":          "fdpass master/supervisor master/reexec",
	"master/openconns":         "master/sockdiag",
	"master/admin":             "fdpass master master/supervisor master/unixsocket",
	"master/metrics":           "master master/balancer master/supervisor master/reexec",
	"master/asuser":            "",
	"master/changes":           "",
	"master/fdlimit":           "",
	"master/logging":           "",
	"master/pgroup":            "",
	"master/probe":             "",
	"master/programs":          "",
	"master/simulation":        "",
	"master/unixsocket":        "",
	"master/sockdiag":          "",

	"cmd/handfast":                 "hash fdpass fdpass/forwarded master master/... examples",
	"cmd/handfast/testdata/worker": "fdpass worker",
	"cmd/bench":                    "worker",
	"cmd/chaos":                    "cmd/chaos/history",
	"cmd/chaos/history":            "hash", // it judges the rest
	"cmd/trial":                    "hash",
	"cmd/trial/nthcall":            "",
	"cmd/vm":                       "",
	"cmd/vm/guest":                 "",
	"examples":                     "",
	"examples/...":                 "worker",
}

// ofLinks is what each link may import, and shared is what links to programs that know nothing of handfast share.
const (
	ofLinks = "fdpass master/supervisor master/asuser master/fdlimit master/openconns master/reexec master/link/listening"
	shared  = " master/link/launch"
)

// TestLayers: no package imports what layers does not allow it.
func TestLayers(t *testing.T) {
	list, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, module+"...", module+"cmd/handfast/testdata/worker").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		name, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		name = strings.TrimPrefix(name, module)
		allowed, known := layers[name]
		if !known && strings.HasPrefix(name, "examples/") {
			allowed, known = layers["examples/..."]
		}
		if !known {
			t.Errorf("%s is not in the table of layers: say there what it may import", name)
			continue
		}
		for _, path := range strings.Fields(imports) {
			path, ours := strings.CutPrefix(path, module)
			if ours && path != "fdpass/sock" && !mayImport(strings.Fields(allowed), path) {
				t.Errorf("%s imports %s, and may import of ours only: %s", name, path, allowed)
			}
		}
	}
}

// mayImport tells whether a list of packages, and of folders (with "/..."), has a package.
func mayImport(list []string, path string) bool {
	return slices.ContainsFunc(list, func(allowed string) bool {
		folder, isFolder := strings.CutSuffix(allowed, "...")
		return allowed == path || isFolder && strings.HasPrefix(path, folder)
	})
}
