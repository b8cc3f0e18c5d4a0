package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// helpWidth is how long a line of help is at most.
const helpWidth = 80

// group is a part of the flags of run.
type group struct {
	title string
	names []string
}

// groups are the flags of run, in the order in which somebody may look for them.
var groups = []group{
	{"Addresses and slots", []string{"listen", "freebind", "slot-address", "workers", "name", "config"}},
	{"Which slot a client belongs to", []string{"hash-seed", "ipv4-prefix", "ipv6-prefix", "key", "session", "new-sessions", "session-idle", "drain-affinity"}},
	{"Behind a proxy", []string{"behind-proxy", "proxy-header", "trusted-proxies", "trusted-hops", "hand-back", "proxy-protocol", "proxy-protocol-optional", "proxy-protocol-mode", "header-timeout", "header-limit"}},
	{"How workers get connections", []string{"route", "ebpf", "worker-link"}},
	{"Waiting and refusing", []string{"retry-delay", "max-retries", "max-parked", "idle-timeout", "max-per-client", "max-connections-per-slot", "when-down", "refuse"}},
	{"A worker's life", []string{"ready-when", "ready-timeout", "sd-notify", "probation", "drain-signal", "drain-timeout", "drain-spread", "max-draining", "stop-timeout", "stop-delay", "kill-timeout",
		"watchdog", "when-hung", "healthy-when", "health-interval", "health-timeout", "health-failures", "when-unhealthy", "max-memory", "max-age",
		"min-uptime", "backoff-min", "backoff-max", "max-restarts"}},
	{"What a worker runs in", []string{"directory", "env", "env-file", "user", "group", "drop-root", "no-new-privs"}},
	{"Operating", []string{"admin", "access-log", "restart-on-change", "worker-output", "log-level", "log-json"}},
}

// grouped returns the flags of a command by groups; those of others than run and check are one.
func grouped(flags []cli.Flag) (parts []group, of map[string]cli.Flag) {
	of = make(map[string]cli.Flag)
	var rest []string
	for _, f := range flags {
		name := f.Names()[0]
		of[name] = f
		if !slices.ContainsFunc(groups, func(g group) bool { return slices.Contains(g.names, name) }) {
			rest = append(rest, name)
		}
	}
	if of["route"] == nil {
		rest = nil
		for _, f := range flags {
			rest = append(rest, f.Names()[0])
		}
	} else {
		parts = slices.Clone(groups)
	}
	if len(rest) > 0 {
		parts = append(parts, group{"Flags", rest})
	}
	return parts, of
}

// flagHelp is what is said of a flag: how it is typed, what it means, and its default.
type flagHelp struct{ names, value, usage, byDefault string }

func helpOf(f cli.Flag) (h flagHelp) {
	for _, name := range f.Names() {
		h.names += ", " + dashed(name)
	}
	h.names = strings.TrimPrefix(h.names, ", ")
	kind := ""
	switch f := f.(type) {
	case *cli.BoolFlag:
		h.usage = f.Usage
	case *cli.IntFlag:
		kind, h.usage, h.byDefault = "N", f.Usage, cmp.Or(f.DefaultText, fmt.Sprint(f.Value))
	case *cli.Uint64Flag:
		kind, h.usage, h.byDefault = "N", f.Usage, cmp.Or(f.DefaultText, fmt.Sprint(f.Value))
	case *cli.DurationFlag:
		kind, h.usage, h.byDefault = "TIME", f.Usage, cmp.Or(f.DefaultText, durationText(f.Value))
	case *cli.StringFlag:
		kind, h.usage, h.byDefault = "VALUE", f.Usage, cmp.Or(f.DefaultText, f.Value)
	case *cli.StringSliceFlag:
		kind, h.usage, h.byDefault = "VALUE", f.Usage, f.DefaultText
	}
	before, name, ok := strings.Cut(h.usage, "`")
	if name, after, closed := strings.Cut(name, "`"); ok && closed {
		kind = name
		switch {
		case before == "" && strings.Contains(name, "|"): // it is no word of the sentence
			name, after = "", strings.TrimSpace(after)
		case before == "" && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "": // it begins the sentence
			name = strings.ToLower(name)
		}
		h.usage = before + name + after
	}
	h.value = kind
	return h
}

// fill breaks text into lines of so many letters at most. Lines that begin with two spaces stay
// as they are; an empty line ends a paragraph.
func fill(text string, width int) (lines []string) {
	line := ""
	flush := func() {
		if line != "" {
			lines, line = append(lines, line), ""
		}
	}
	for _, source := range strings.Split(text, "\n") {
		if source == "" || strings.HasPrefix(source, "  ") {
			flush()
			lines = append(lines, source)
			continue
		}
		for word := range strings.FieldsSeq(source) {
			if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
				flush()
			}
			if line != "" {
				line += " "
			}
			line += word
		}
	}
	flush()
	return lines
}

// writeFlags writes the flags of a command.
func writeFlags(b *strings.Builder, flags []cli.Flag) {
	const margin = 26
	parts, of := grouped(flags)
	for _, part := range parts {
		fmt.Fprintf(b, "\n%s:\n", part.title)
		for _, name := range part.names {
			h := helpOf(of[name])
			text := h.usage
			if h.byDefault != "" {
				text += " (default: " + h.byDefault + ")"
			}
			head := strings.TrimRight("  "+h.names+" "+h.value, " ")
			lines := fill(text, helpWidth-margin)
			if len(head) > margin-2 {
				fmt.Fprintln(b, head)
				head = ""
			}
			for _, line := range lines {
				fmt.Fprintf(b, "%-*s%s\n", margin, head, line)
				head = ""
			}
		}
	}
}

// commandHelp is what `handfast COMMAND --help` prints.
func commandHelp(command *cli.Command) string {
	var b strings.Builder
	flags := ""
	if len(command.Flags) > 0 {
		flags = " [flags]"
	}
	fmt.Fprintf(&b, "%s\n\n", strings.Join(fill(fmt.Sprintf("handfast %s: %s", command.Name, command.Usage), helpWidth), "\n"))
	fmt.Fprintf(&b, "Usage: %s\n", strings.TrimRight("handfast "+command.Name+flags+" "+command.ArgsUsage, " "))
	if command.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.Join(fill(command.Description, helpWidth), "\n"))
	}
	writeFlags(&b, command.Flags)
	if named := slices.IndexFunc(command.Flags, hasVariable); named >= 0 {
		flag := command.Flags[named].Names()[0]
		fmt.Fprintf(&b, "\nFlags have environment variables: --%s is %s.\n", flag, env(flag)[0])
	}
	return b.String()
}

// hasVariable tells whether a flag can be given by an environment variable.
func hasVariable(flag cli.Flag) bool {
	f, ok := flag.(cli.DocGenerationFlag)
	return ok && len(f.GetEnvVars()) > 0
}

// appHelp is what `handfast help` prints.
func appHelp(app *cli.App) string {
	var b strings.Builder
	fmt.Fprintf(&b, "handfast: %s\n\n%s\n\n%s\n\nCommands:\n", app.Usage, app.UsageText, strings.Join(fill(app.Description, helpWidth), "\n"))
	for _, command := range app.Commands {
		lines := fill(command.Usage, helpWidth-16)
		fmt.Fprintf(&b, "  %-14s%s\n", command.Name, strings.Join(lines, "\n"+strings.Repeat(" ", 16)))
	}
	fmt.Fprint(&b, "\n'handfast help TOPIC' explains:\n")
	for _, t := range topics {
		fmt.Fprintf(&b, "  %-17s%s\n", t.name, t.about)
	}
	fmt.Fprint(&b, "\n'handfast help MESSAGE' explains a message, by its words or the log's help=NAME.\n\n'handfast COMMAND --help' tells more, 'handfast man | man -l -' all of it, and\n'handfast --version' which one this is.\n")
	return b.String()
}

// literal is a template that yields this text.
func literal(text string) string { return strings.ReplaceAll(text, "{{", `{{"{{"}}`) }
