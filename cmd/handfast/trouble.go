package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// trouble is a row of TROUBLESHOOTING.md: a message of the program, or what clients see.
type trouble struct{ anchor, message, cause, remedy string }

// troubleRow is such a row. No cell has a bar in it.
var troubleRow = regexp.MustCompile("(?m)^\\| <a id=\"([^\"]+)\"></a>`([^`]+)` \\| ([^|]+) \\| ([^|]+) \\|$")

var troubles = sync.OnceValue(func() (all []trouble) {
	for _, cells := range troubleRow.FindAllStringSubmatch(troubleshootingPage, -1) {
		all = append(all, trouble{cells[1], cells[2], unmarked(cells[3]), unmarked(cells[4])})
	}
	return all
})

// troubleNames are the rows' names for `handfast help`, by message: as many words of the anchor, two at least, as tell it
// from the others.
var troubleNames = sync.OnceValue(func() map[string]string {
	names := make(map[string]string)
	for _, t := range troubles() {
		words := strings.Split(t.anchor, "-")
		n := min(2, len(words))
		for n < len(words) && !slices.Equal(findTroubles(strings.Join(words[:n], "-")), []trouble{t}) {
			n++
		}
		names[t.message] = strings.Join(words[:n], "-")
	}
	return names
})

// troubleName is under what name help explains a message of the log; empty: it does not.
func troubleName(message string) string { return troubleNames()[strings.TrimSuffix(message, ": ")] }

// troubleIn is the name of the longest message that is part of an error's text; empty: there is none.
func troubleIn(text string) string {
	longest := ""
	for _, t := range troubles() {
		if len(t.message) > len(longest) && strings.Contains(text, t.message) {
			longest = t.message
		}
	}
	return troubleName(longest)
}

// notAnchor is what anchors leave out of messages.
var notAnchor = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)

// anchorOf is the anchor of a message.
func anchorOf(message string) string {
	return strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(message), ""), " ", "-")
}

// findTroubles returns the row with an anchor, else those whose anchors begin with it, else those that have it anywhere.
func findTroubles(anchor string) (found []trouble) {
	for _, fits := range []func(trouble) bool{
		func(t trouble) bool { return t.anchor == anchor },
		func(t trouble) bool { return strings.HasPrefix(t.anchor, anchor) },
		func(t trouble) bool { return strings.Contains(t.anchor, anchor) },
	} {
		for _, t := range troubles() {
			if fits(t) {
				found = append(found, t)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return found
}

// writeTrouble explains a message, which may be typed as it is or by its name. If several fit it lists them. It reports
// whether any does.
func writeTrouble(out io.Writer, words []string) (known bool, err error) {
	anchor := anchorOf(strings.Join(words, " "))
	if strings.Trim(anchor, "-") == "" {
		return false, nil
	}
	found := findTroubles(anchor)
	var b strings.Builder
	switch len(found) {
	case 0:
		return false, nil
	case 1:
		t := found[0]
		for _, text := range []string{t.message, "", "Cause: " + strings.TrimSuffix(t.cause, ".") + ".", "", "Remedy: " + strings.TrimSuffix(t.remedy, ".") + "."} {
			fmt.Fprintln(&b, strings.Join(fill(text, helpWidth), "\n"))
		}
	default:
		fmt.Fprintln(&b, "Several messages are like that:")
		for _, t := range found {
			fmt.Fprintf(&b, "  handfast help %s\n", troubleName(t.message))
		}
	}
	_, err = io.WriteString(out, b.String())
	return true, err
}

// helpMistake says of a word that help does not know which one may have been meant.
func helpMistake(names []string, typed string) error {
	for _, t := range topics {
		names = append(names, t.name)
	}
	for _, t := range troubles() {
		names = append(names, troubleName(t.message))
	}
	slices.Sort(names)
	if hint := nearest(typed, names); hint != "" {
		return usagef("help has nothing of %q; did you mean handfast help %s?", typed, hint)
	}
	if pages := topicsWith(typed); len(pages) > 0 {
		return usagef("help has nothing of %q by itself; it is in handfast help %s", typed, or(pages))
	}
	return usagef("help has nothing of %q; 'handfast help' lists commands and topics, 'handfast help troubleshooting' has each warning and error of the log. What the log says at level info is no trouble: 'handfast help concepts' has its words", typed)
}

// topicsWith returns the topics whose pages have these words, which are in all of them if they are too short.
func topicsWith(words string) (names []string) {
	const least = 4
	words = strings.ToLower(strings.ReplaceAll(words, "-", " "))
	if len(anchorOf(words)) < least {
		return nil
	}
	for _, t := range topics {
		text := strings.Join(strings.Fields(strings.ToLower(strings.ReplaceAll(unmarked(t.page), "-", " "))), " ")
		if strings.Contains(text, words) {
			names = append(names, t.name)
		}
	}
	return names
}
