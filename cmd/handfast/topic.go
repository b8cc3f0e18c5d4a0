package main

import (
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/handfast/handfast/examples"
)

// The pages that `handfast help TOPIC` shows are those that are read on the web.
var (
	//go:embed CONCEPTS.md
	conceptsPage string
	//go:embed OPERATING.md
	operatingPage string
	//go:embed SESSIONS.md
	sessionsPage string
	//go:embed TROUBLESHOOTING.md
	troubleshootingPage string
)

// topic is something that help explains beside the commands.
type topic struct{ name, about, page string }

var topics = []topic{
	{"concepts", "what the words mean; what happens in a reload and in a crash", conceptsPage},
	{"operating", "status, reload, upgrade, deployments, logs, metrics", operatingPage},
	{"recipes", "I have Socket.IO, Flask, nginx, systemd ...: the command", examples.Recipes},
	{"sessions", "clients that are known by more than their address", sessionsPage},
	{"troubleshooting", "each message: cause and remedy", troubleshootingPage},
}

// writeTopic writes what help says of a word that is no command, and reports whether it is a topic.
func writeTopic(out io.Writer, name string) (known bool, err error) {
	at := slices.IndexFunc(topics, func(t topic) bool { return t.name == name })
	if at < 0 {
		return false, nil
	}
	_, err = io.WriteString(out, plainText(topics[at].page))
	return true, err
}

var (
	pageMark    = regexp.MustCompile("<[a-z/!][^>]*>|\\*\\*|`")
	pagePicture = regexp.MustCompile(`!\[[^\]]*\]\([^)]*\)`)
	wholeCode   = regexp.MustCompile("^`[^`]+`$")
	pageLink    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// unmarked is the text of a line without marks, links and pictures.
func unmarked(line string) string {
	return pageMark.ReplaceAllString(pageLink.ReplaceAllString(pagePicture.ReplaceAllString(line, ""), "$1"), "")
}

// plainText is a page of ours for a terminal: paragraphs are filled, the first cell of a table's row stands above the
// others, and what is code stays as it is.
func plainText(page string) string {
	var b strings.Builder
	paragraph := ""
	flush := func() {
		if text := strings.TrimSpace(paragraph); text != "" {
			fmt.Fprintln(&b, strings.Join(fill(text, helpWidth), "\n"))
		}
		paragraph = ""
	}
	fenced := false
	lines := strings.Split(strings.TrimRight(page, "\n"), "\n")
	for i, line := range lines {
		fence := strings.HasPrefix(line, "```")
		if fence {
			fenced = !fenced
		}
		switch {
		case fence:
			flush()
		case fenced, strings.HasPrefix(line, "    "):
			flush()
			fmt.Fprintln(&b, line)
		case strings.HasPrefix(line, "#"):
			flush()
			fmt.Fprintln(&b, strings.ToUpper(strings.TrimLeft(line, "# ")))
		case strings.HasPrefix(line, "|"):
			if i+1 == len(lines) || !isRule(lines[i+1]) { // the head is that of columns, which are none here
				b.WriteString(plainRow(line))
			}
		case line == "":
			flush()
			fmt.Fprintln(&b)
		case strings.HasPrefix(line, "* "):
			flush()
			paragraph = unmarked(line)
		default:
			paragraph += " " + unmarked(strings.TrimSpace(line))
		}
	}
	flush()
	return b.String()
}

// isRule reports whether a line is the one below the head of a table.
func isRule(line string) bool {
	return strings.HasPrefix(line, "|") && strings.Trim(line, "|-: ") == ""
}

// plainRow is a row of a table.
func plainRow(row string) string {
	if isRule(row) {
		return ""
	}
	cells := strings.Split(strings.ReplaceAll(strings.TrimSuffix(row[1:], "|"), `\|`, "\x00"), "|")
	var b strings.Builder
	for i, text := range cells {
		code := wholeCode.MatchString(strings.TrimSpace(text))
		text = strings.ReplaceAll(unmarked(strings.TrimSpace(text)), "\x00", "|")
		if text == "" {
			continue
		}
		indent := strings.Repeat(" ", 4*min(i, 1))
		lines := fill(text, helpWidth-utf8.RuneCountInString(indent))
		if code { // to be copied
			lines = []string{text}
		}
		for _, line := range lines {
			fmt.Fprintln(&b, indent+line)
		}
	}
	return b.String()
}
