package main

import (
	"os"
	"strings"
	"testing"
)

// TestReadmeListsFlags: each flag of `handfast run` is in the reference, README.md, and has its
// environment variable.
func TestReadmeListsFlags(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range runFlags() {
		name := f.Names()[0]
		if !strings.Contains(string(readme), "`--"+name) {
			t.Errorf("README.md does not mention --%s", name)
		}
		if doc, ok := f.(interface{ GetEnvVars() []string }); !ok || len(doc.GetEnvVars()) != 1 || doc.GetEnvVars()[0] != env(name)[0] {
			t.Errorf("--%s has no environment variable of its name", name)
		}
	}
}
