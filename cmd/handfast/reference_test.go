package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master/admin"
)

// updatePages has TestReadmeReference write what it wants: HANDFAST_TEST_UPDATE_PAGES=1 go test -run TestReadmeReference ./cmd/handfast
const updatePages = "HANDFAST_TEST_UPDATE_PAGES"

// cell is text for a column of a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}

// flagTables are the flags of run as their definitions have them, a table for each group.
func flagTables() string {
	var b strings.Builder
	parts, of := grouped(runFlags())
	for _, part := range parts {
		fmt.Fprintf(&b, "\n### %s\n\n| flag | default | |\n|---|---|---|\n", part.title)
		for _, name := range part.names {
			h := helpOf(of[name])
			byDefault := h.byDefault
			if is, ok := of[name].(*cli.BoolFlag); ok {
				byDefault = map[bool]string{false: "off", true: "on"}[is.Value]
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", cell(strings.TrimSpace(h.names+" "+h.value)), cell(byDefault), cell(h.usage))
		}
	}
	return b.String()
}

// commandTable is each command with its own flags.
func commandTable() string {
	var b strings.Builder
	fmt.Fprint(&b, "\n| command | | its flags |\n|---|---|---|\n")
	for _, command := range newApp(io.Discard, io.Discard).Commands {
		if command.Name == "help" {
			continue
		}
		var flags []string
		for _, f := range command.Flags {
			flags = append(flags, "`--"+f.Names()[0]+"`")
		}
		if command.Name == "run" || command.Name == "check" {
			flags = []string{"[all](#flags)"}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", cell(strings.TrimSpace("handfast "+command.Name+" "+command.ArgsUsage)), cell(command.Usage), strings.Join(flags, ", "))
	}
	return b.String()
}

// itemTable is a part of the manual page.
func itemTable(head string, items [][2]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| %s | |\n|---|---|\n", head)
	for _, item := range items {
		fmt.Fprintf(&b, "| %s | %s |\n", cell(item[0]), cell(item[1]))
	}
	return b.String()
}

// jsonOf is what a value looks like in JSON: the names of its fields.
func jsonOf(value any) string {
	var fields []string
	of := reflect.TypeOf(value)
	for i := range of.NumField() {
		name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
		fields = append(fields, name)
	}
	return "`{" + strings.Join(fields, ", ") + "}`"
}

// routeTable is what the HTTP API answers.
func routeTable() string {
	var b strings.Builder
	fmt.Fprint(&b, "\n| request | | who may, by TCP | body | answer | status |\n|---|---|---|---|---|---|\n")
	for _, r := range admin.Routes() {
		body, answers := "", []string{}
		if r.Body != nil {
			body = jsonOf(r.Body)
		}
		for _, answer := range r.Answers {
			switch answer := answer.(type) {
			case string:
				answers = append(answers, answer)
			case admin.Progress:
				answers = append(answers, "a line for each step: "+jsonOf(answer))
			default:
				answers = append(answers, jsonOf(answer))
			}
		}
		who, statuses := "all who can connect", slices.Clone(r.Statuses)
		if r.Changes() {
			who, statuses = "this machine", append(statuses, admin.CommandStatuses...)
		}
		slices.Sort(statuses)
		fmt.Fprintf(&b, "| `%s %s` | %s | %s | %s | %s | %s |\n", r.Method, r.Path, cell(r.Does), who, body, strings.Join(answers, "; "),
			strings.ReplaceAll(strings.Trim(fmt.Sprint(statuses), "[]"), " ", ", "))
	}
	return b.String()
}

// TestReadmeReference: what README.md, the reference, says of commands, flags, signals, exit status, files, metrics and the HTTP
// API is what the program has.
func TestReadmeReference(t *testing.T) {
	const page = "README.md"
	file, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(file)
	for name, want := range map[string]string{
		"commands": commandTable(), "flags": flagTables(), "signals": itemTable("signal to the master", manualSignals),
		"exit status": itemTable("exit status", manualStatus), "files": itemTable("file", manualFiles), "metrics": metricTable(t), "HTTP API": routeTable(),
	} {
		begin, end := "<!-- "+name+": made by the program -->\n", "\n<!-- end of "+name+" -->"
		before, rest, begins := strings.Cut(text, begin)
		got, after, ends := strings.Cut(rest, end)
		if !begins || !ends {
			t.Errorf("%s has no %q", page, begin)
			continue
		}
		if got != want && os.Getenv(updatePages) == "" {
			t.Errorf("%s has other %s than the program; %s=1 writes them:\n%s", page, name, updatePages, want)
		}
		text = before + begin + want + end + after
	}
	if os.Getenv(updatePages) != "" {
		if err := os.WriteFile(filepath.Clean(page), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// definition is where package metrics names a metric and says what it is.
var definition = regexp.MustCompile(`(?:desc|newCounters|newHistograms)\("([a-z_]+)",\s*"([^"]+)"([^\n]*)`)

// label is a further string in a definition that is a name.
var label = regexp.MustCompile(`"([a-z_]+)"`)

// metricTable is what package metrics defines.
func metricTable(t *testing.T) string {
	t.Helper()
	var rows []string
	for _, name := range []string{"metrics.go", "status.go"} {
		source, err := os.ReadFile(filepath.Join("../../master/metrics", name))
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`",\n\s+`).ReplaceAllString(string(source), `", `) // arguments on one line
		for _, match := range definition.FindAllStringSubmatch(text, -1) {
			labels := ""
			for _, l := range label.FindAllString(match[3], -1) {
				labels += ", `" + strings.Trim(l, `"`) + "`"
			}
			rows = append(rows, fmt.Sprintf("| `handfast_%s` | %s | %s |\n", match[1], strings.TrimPrefix(labels, ", "), cell(match[2])))
		}
	}
	if len(rows) < 30 {
		t.Errorf("%d metrics", len(rows))
	}
	slices.Sort(rows)
	return "\n| metric | labels | |\n|---|---|---|\n" + strings.Join(rows, "")
}
