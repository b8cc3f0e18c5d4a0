package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master/admin"
)

// completionFlag, at the end, asks what the last word before it may become.
const completionFlag = "--generate-bash-completion"

// completionTimeout bounds what a running master is asked for.
const completionTimeout = time.Second

// Completion scripts: the program itself knows what may follow. The last word that they pass is the
// one that is being typed, which may be empty. Where there is nothing to say files are offered.
const (
	bashCompletion = `_handfast() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[@]:0:COMP_CWORD+1}" --generate-bash-completion 2>/dev/null)" -- "${cur#=}")
}
complete -o bashdefault -o default -F _handfast handfast
`
	zshCompletion = `#compdef handfast
_handfast() {
	local -a found
	found=("${(@f)$("${(@)words[1,CURRENT]}" --generate-bash-completion 2>/dev/null)}")
	[[ -n ${found[1]} ]] && compadd -a found || _files
}
compdef _handfast handfast
`
	fishCompletion = `function __handfast_complete
	set -l words (commandline -opc) (commandline -ct)
	set -l found ($words --generate-bash-completion 2>/dev/null)
	if test (count $found) -gt 0
		printf '%s\n' $found
	else
		__fish_complete_path (commandline -ct)
	end
end
complete -c handfast -f -a '(__handfast_complete)'
`
)

// choices are the words that flags take; of some, not the only ones.
var choices = map[string][]string{
	"route":           routeWords,
	"worker-link":     linkWords,
	"worker-output":   outputWords,
	"ready-when":      append(slices.Clone(readyWords), readyNotify),
	"when-down":       {"wait", "next"},
	"ebpf":            ebpfWords,
	"refuse":          {"http", "close"},
	"when-hung":       {"report", "replace"},
	"when-unhealthy":  {"report", "replace"},
	"healthy-when":    {"http://127.0.0.1:900{slot}/", "tcp:127.0.0.1:900{slot}"},
	"log-level":       {"trace", "debug", "info", "warn", "error"},
	"drain-signal":    {"auto", "TERM", "INT", "QUIT", "WINCH", "USR1", "USR2", "HUP"},
	"key":             {"address", "cookie:", "query:", "path:", "header:"},
	"session":         {"engine.io", "cookie:", "query:", "path:", "header:"},
	"proxy-header":    {"X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "Forwarded"},
	"trusted-proxies": {"loopback", "private", "link-local", "@"},

	"proxy-protocol-optional": {"loopback", "private", "link-local", "@"},
	"new-sessions":            newSessionsWords,
	"proxy-protocol-mode":     proxyModeWords,
	"admin":                   {adminOff},
}

// complete returns what the last of the words may be, nothing where it knows nothing.
func complete(ctx context.Context, app *cli.App, words []string) []string {
	if len(words) == 0 {
		return nil
	}
	before, typed := words[:len(words)-1], words[len(words)-1]
	if len(before) == 0 {
		if strings.HasPrefix(typed, "-") {
			return []string{"--help", "--version"}
		}
		return strings.Split(commandNames(app)+", help", ", ")
	}
	if before[0] == "help" {
		all := strings.Split(commandNames(app), ", ")
		for _, t := range topics {
			all = append(all, t.name)
		}
		return all
	}
	command := app.Command(before[0])
	if command == nil {
		return nil
	}
	// bash makes words of their own of equals signs.
	before = before[1:]
	if last := len(before) - 1; typed == "=" && last >= 0 {
		typed = ""
	} else if last >= 1 && before[last] == "=" {
		before = before[:last]
	}
	if name, value, ok := strings.Cut(typed, "="); ok && strings.HasPrefix(typed, "-") { // zsh and fish do not
		var all []string
		for _, word := range valuesOf(ctx, command, name) {
			if strings.HasPrefix(word, value) {
				all = append(all, name+"="+word)
			}
		}
		return all
	}
	line := readCommandLine(command, before)
	switch operands := len(line.operands); {
	case strings.TrimLeft(line.pending, "-") == "slot":
		return slotNames(ctx, line)
	case line.pending != "":
		return valuesOf(ctx, command, line.pending)
	case line.ended, runsCommand(command) && operands > 0:
		return nil // it belongs to COMMAND
	case strings.HasPrefix(typed, "-"):
		var all []string
		for _, name := range flagNames(command.Flags) {
			if len(name) > 1 {
				all = append(all, "--"+name)
			}
		}
		return all
	case command.Name == "completion" && operands == 0:
		return []string{"bash", "zsh", "fish"}
	case command.Name == "man" && operands == 0:
		return []string{configPage}
	case command.Name == "proxy-config" && operands == 0:
		return proxyNames()
	case command.Name == "drain" && operands == 0 && !line.typed(command)["now"]:
		return slotNames(ctx, line)
	}
	return nil
}

// valuesOf returns the values of a flag, as it is typed.
func valuesOf(ctx context.Context, command *cli.Command, flag string) []string {
	f := flagOf(command.Flags, strings.TrimLeft(flag, "-"))
	if f == nil {
		return nil
	}
	name := f.Names()[0]
	if name == "name" && !runsCommand(command) {
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		return admin.Running(ctx)
	}
	if name == "by" {
		return byWords
	}
	return choices[name]
}

// slotNames are those of the master that --name, or --admin, names.
func slotNames(ctx context.Context, line commandLine) (slots []string) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	var m *admin.Client
	if addr, err := admin.ParseAddress(line.value("admin")); err == nil {
		m = admin.NewClient(addr)
	} else if m, err = admin.Find(ctx, line.value("name")); err != nil {
		return nil
	}
	status, err := m.Status(ctx)
	if err != nil {
		return nil
	}
	for _, slot := range status.Slots {
		slots = append(slots, strconv.Itoa(slot.Slot))
	}
	return slices.Compact(slots)
}
