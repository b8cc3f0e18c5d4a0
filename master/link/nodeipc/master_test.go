package nodeipc

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNamesMaster is row C5: scripts that are masters of their own workers are known by their calls.
func TestNamesMaster(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script.js")
	for text, want := range map[string]string{
		"var cluster = recluster(path.join(__dirname, 'server.js'), {readyWhen: 'ready'})": "recluster()",
		"var balancer = sticky.createBalancer({})":                                         "createBalancer()",
		"sticky.listen(server)": "",
		"if (cluster.isPrimary) { recluster('x').run() } else { server.listen() }": "",
		"// recluster": "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := NamesMaster(path); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if got := NamesMaster(filepath.Dir(path)) + NamesMaster(""); got != "" {
		t.Errorf("of no script: %q", got)
	}
}
