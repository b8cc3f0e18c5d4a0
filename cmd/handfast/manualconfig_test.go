package main

import (
	"os"
	"strings"
	"testing"
)

// TestManualConfig: the page of the configuration file has each setting, and each example on it is a file that run takes
// as it is: the setting comes from its first line. Row C10.
func TestManualConfig(t *testing.T) {
	for _, variable := range os.Environ() { // which come before the file
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "HANDFAST_") && name != testRole {
			t.Setenv(name, value) // and back, afterwards
			os.Unsetenv(name)
		}
	}
	page := help(t, "man", configPage)
	lintManual(t, page)
	text := strings.ReplaceAll(page, `\-`, "-")
	for _, f := range runFlags() {
		name := f.Names()[0]
		example := settingExamples[name]
		if name == "config" {
			continue
		}
		if !strings.Contains(text, ".TP\n\\fB"+name+"\\fR\n") || example == "" || !strings.Contains(text, "\n"+example+"\n.fi") {
			t.Errorf("no %s, or no example: %s", name, example)
			continue
		}
		if !strings.Contains(text, env(name)[0]) {
			t.Errorf("no %s", env(name)[0])
		}
		path := writeConfig(t, example)
		found := false
		for line := range strings.Lines(effective(t, "--config", path, "--", "true")) { // or the test has failed
			found = found || strings.HasPrefix(line, name+": ") && strings.HasSuffix(line, " # "+path+":1\n")
		}
		if !found {
			t.Errorf("%s does not come from the first line of\n%s", name, example)
		}
	}
	for name := range settingExamples {
		if flagOf(runFlags(), name) == nil {
			t.Errorf("an example of %s, which is no flag", name)
		}
	}
	path := writeConfig(t, configExample)
	if out := effective(t, "--config", path); !strings.Contains(out, "command: [node, server.js] # "+path+":8\n") {
		t.Error(out)
	}
}
