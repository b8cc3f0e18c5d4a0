package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// repository is where the pages are.
const repository = "../.."

// pages returns the text of each page of the repository, by its path from there.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	err := filepath.WalkDir(repository, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "node_modules" || name != repository && strings.HasPrefix(entry.Name(), ".")) {
			return fs.SkipDir
		}
		if !entry.Type().IsRegular() || filepath.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(repository, name)
		texts[relative] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(texts) < 10 {
		t.Fatalf("%d pages", len(texts))
	}
	return texts
}

// prose returns the lines of a page that are not code, and its code.
func prose(text string) (lines, code []string) {
	fence := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case fence != "":
			if strings.HasPrefix(trimmed, fence) {
				fence = ""
			} else {
				code = append(code, line)
			}
		case strings.HasPrefix(trimmed, "```"):
			fence = "```"
		case strings.HasPrefix(line, "    "):
			code = append(code, line[len("    "):])
		default:
			lines = append(lines, line)
		}
	}
	return lines, code
}

var (
	heading   = regexp.MustCompile(`^#{1,6} (.*)$`)
	anchorTag = regexp.MustCompile(`<a (?:id|name)="([^"]+)">`)
	notSlug   = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
	codeSpan  = regexp.MustCompile("`[^`]*`")
	linkTo    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	linkText  = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchors returns where links into a page can lead, as GitHub names its headings.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	lines, _ := prose(text)
	for _, line := range lines {
		for _, tag := range anchorTag.FindAllStringSubmatch(line, -1) {
			found[tag[1]] = true
		}
		if h := heading.FindStringSubmatch(line); h != nil {
			title := linkText.ReplaceAllString(h[1], "$1")
			name := strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
			unique := name
			for n := 1; found[unique]; n++ {
				unique = fmt.Sprintf("%s-%d", name, n)
			}
			found[unique] = true
		}
	}
	return found
}

// TestReadmeLinks: each link of a page leads to a file of the repository, and to a heading in it.
func TestReadmeLinks(t *testing.T) {
	texts := pages(t)
	for page, text := range texts {
		lines, _ := prose(text)
		for _, match := range linkTo.FindAllStringSubmatch(codeSpan.ReplaceAllString(strings.Join(lines, "\n"), ""), -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, ":") { // another site
				continue
			}
			to := page
			if target != "" {
				to = path.Join(path.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(repository, to)); err != nil {
				t.Errorf("%s: %s: %v", page, match[1], err)
				continue
			}
			if anchor != "" && !anchors(texts[to])[anchor] {
				t.Errorf("%s: %s has no heading #%s", page, to, anchor)
			}
		}
	}
}

// TestReadmeIsShort: README.md says what handfast is, starts and points; what is long has a page.
func TestReadmeIsShort(t *testing.T) {
	const most = 180
	if n := strings.Count(pages(t)["README.md"], "\n"); n > most {
		t.Errorf("README.md has %d lines, want %d at most", n, most)
	}
}

// message is one that the log has at warn or error.
var message = regexp.MustCompile(`\.(?:Warn|Error)\("([^"]+)"`)

// TestReadmeTroubleshooting: each message of the log that something is wrong is on its page, with an anchor.
func TestReadmeTroubleshooting(t *testing.T) {
	page := pages(t)["cmd/handfast/TROUBLESHOOTING.md"]
	found := 0
	for _, folder := range []string{"cmd/handfast", "master"} {
		err := filepath.WalkDir(filepath.Join(repository, folder), func(name string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
				return err
			}
			source, err := os.ReadFile(name)
			for _, match := range message.FindAllStringSubmatch(string(source), -1) {
				found++
				text := strings.TrimSuffix(match[1], ": ")
				anchor := strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(text), ""), " ", "-")
				if row := `<a id="` + anchor + "\"></a>`" + text + "`"; !strings.Contains(page, row) {
					t.Errorf("%s: TROUBLESHOOTING.md has no row %s", name, row)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 40 {
		t.Errorf("%d messages", found)
	}
}

// TestReadmeVersions: README.md and the pages that it lists say for which version they are true, which is the newest
// of CHANGELOG.md.
func TestReadmeVersions(t *testing.T) {
	texts := pages(t)
	_, changes, _ := strings.Cut(texts["CHANGELOG.md"], "\n## ")
	newest, _, _ := strings.Cut(changes, "\n")
	_, list, found := strings.Cut(texts["README.md"], "\n## Pages\n")
	if newest == "" || !found {
		t.Fatal("no newest version, or no list of pages")
	}
	want := "For handfast [" + newest + "]("
	listed := []string{"README.md"}
	for _, match := range linkTo.FindAllStringSubmatch(list, -1) {
		if target, _, _ := strings.Cut(match[1], "#"); path.Ext(target) == ".md" && target != "CHANGELOG.md" {
			listed = append(listed, target)
		}
	}
	for _, page := range listed {
		if !strings.Contains(texts[page], want) {
			t.Errorf("%s does not say %q", page, want)
		}
	}
}

// TestReadmeRecipes: the server of each recipe is started in these words by a page of its own, which tests follow.
func TestReadmeRecipes(t *testing.T) {
	const recipes = "examples/README.md"
	texts := pages(t)
	found := 0
	for _, span := range codeSpan.FindAllString(texts[recipes], -1) {
		before, command, is := strings.Cut(strings.Trim(span, "`"), " -- ")
		if !is || !strings.Contains(before, "handfast run") {
			continue
		}
		found++
		known := false
		for page, text := range texts {
			known = known || page != recipes && strings.Contains(text, command)
		}
		if !known {
			t.Errorf("%s: no other page has %s", recipes, command)
		}
	}
	if found < 10 {
		t.Errorf("%s has %d commands", recipes, found)
	}
}

// TestReadmeCommands: each `handfast run` of a page, on a console or in its text, has flags and values that run takes.
func TestReadmeCommands(t *testing.T) {
	found := 0
	for page, text := range pages(t) {
		if page == "CHANGELOG.md" {
			continue
		}
		lines, code := prose(text)
		commands := codeSpan.FindAllString(strings.Join(lines, "\n"), -1)
		for _, line := range code {
			if command, is := strings.CutPrefix(line, "$ "); is {
				commands = append(commands, command)
			}
		}
		for _, command := range commands {
			_, command, is := strings.Cut(strings.Trim(command, "`"), "handfast run ")
			flags, _, hasCommand := strings.Cut(command, " -- ")
			if strings.HasPrefix(command, "-- ") {
				flags, hasCommand = "", true
			}
			if !is || !hasCommand || strings.Contains(flags, "…") {
				continue
			}
			found++
			var words []string
			for word := range strings.FieldsSeq(flags) {
				words = append(words, strings.Trim(word, "'"))
			}
			if err := readOnly(words); err != nil {
				t.Errorf("%s: handfast run %s: %v", page, flags, err)
			}
		}
	}
	if found < 40 {
		t.Errorf("%d commands", found)
	}
}

// readOnly reads flags of run as `handfast check` does, and tries nothing.
func readOnly(flags []string) error {
	app := newApp(io.Discard, io.Discard)
	var mistake error
	app.Command("check").Action = func(c *cli.Context) error {
		_, mistake = readAll(c, io.Discard)
		return nil
	}
	parsing.Lock()
	defer parsing.Unlock()
	if err := app.Run(slices.Concat([]string{"handfast", "check"}, flags, []string{"--", "true"})); err != nil {
		return err
	}
	return mistake
}
