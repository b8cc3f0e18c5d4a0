package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestHelpTopics: help has the pages offline, without marks; what is no example is within 80 columns.
func TestHelpTopics(t *testing.T) {
	list := help(t, "help")
	offered := strings.Fields(help(t, "help", "", completionFlag))
	for _, topic := range topics {
		text := help(t, "help", topic.name)
		if !slices.Contains(offered, topic.name) {
			t.Errorf("completion does not offer %s", topic.name)
		}
		if !strings.Contains(list, "  "+topic.name+" ") || len(text) < len(topic.page)*2/3 {
			t.Errorf("%s: %d bytes of %d", topic.name, len(text), len(topic.page))
		}
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(line, "    ") || strings.Contains(line, "$ ") {
				continue // of a table, or an example
			}
			if utf8.RuneCountInString(line) > helpWidth && strings.Contains(line, " ") || strings.Contains(line, "](") || strings.HasPrefix(line, "#") {
				t.Errorf("%s: %s", topic.name, line)
			}
		}
	}
}

// TestHelpPlainText: what becomes of each kind of line.
func TestHelpPlainText(t *testing.T) {
	long := strings.Repeat("word ", 20) + "end"
	page := "# A page\n\nOne **word**,\na [link](x.md) and `code`.\n\n![picture](x.svg)\n\n| head | |\n|---|---|\n| `a\\|b` | first |\n| x | `" + long + "` |\n\n    $ as it is\n\n" +
		"```go\nlong := true\n```\n\n* an item\n  of two lines\n"
	want := "A PAGE\n\nOne word, a link and code.\n\n\na|b\n    first\nx\n    " + long + "\n\n    $ as it is\n\nlong := true\n\n* an item of two lines\n"
	if got := plainText(page); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
