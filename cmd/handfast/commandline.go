package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// commandLine is what follows a command's name: its flags with their values, and its operands. Of run and
// check all that follows the first operand is one, too: it belongs to COMMAND.
type commandLine struct {
	flags    []typedFlag
	operands []string
	ended    bool   // there is a --, behind which no flag comes
	pending  string // the last flag, as it is typed, if its value is missing
}

// typedFlag is a flag as it is typed.
type typedFlag struct {
	name  string // without dashes
	value string
	words []string // one, or two: --name and its value
}

// readCommandLine reads the words that follow a command's name.
func readCommandLine(command *cli.Command, words []string) (l commandLine) {
	for len(words) > 0 {
		word := words[0]
		switch {
		case word == "--":
			l.ended, l.operands = true, append(l.operands, words[1:]...)
			return l
		case strings.HasPrefix(word, "-") && word != "-":
			f, missing := readFlag(command, words)
			l.flags = append(l.flags, f)
			words = words[len(f.words):]
			if missing {
				l.pending = word
			}
		case runsCommand(command):
			l.operands = append(l.operands, words...)
			return l
		default:
			l.operands, words = append(l.operands, word), words[1:]
		}
	}
	return l
}

// readFlag reads the flag that words begin with, and tells whether its value is missing.
func readFlag(command *cli.Command, words []string) (f typedFlag, missing bool) {
	name, value, attached := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
	f = typedFlag{name, value, words[:1]}
	if attached || !takesValue(command, name) {
		return f, false
	}
	if len(words) == 1 {
		return f, true
	}
	f.value, f.words = words[1], words[:2]
	return f, false
}

// takesValue tells whether a flag is followed by a value.
func takesValue(command *cli.Command, name string) bool {
	f := flagOf(command.Flags, name)
	_, isBool := f.(*cli.BoolFlag)
	return f != nil && !isBool
}

// runsCommand tells whether the operands of a command are another one.
func runsCommand(command *cli.Command) bool { return command.Name == "run" || command.Name == "check" }

// ordered returns the words with all flags first, where urfave/cli wants them.
func (l commandLine) ordered() (words []string) {
	for _, f := range l.flags {
		words = append(words, f.words...)
	}
	if l.ended || len(l.operands) > 0 {
		words = append(words, "--")
	}
	return append(words, l.operands...)
}

// typed returns the flags that are there, by the first of their names.
func (l commandLine) typed(command *cli.Command) map[string]bool {
	found := map[string]bool{}
	for _, f := range l.flags {
		if known := flagOf(command.Flags, f.name); known != nil {
			found[known.Names()[0]] = true
		}
	}
	return found
}

// value returns the last value of a flag, empty if it is not there.
func (l commandLine) value(name string) (value string) {
	for _, f := range l.flags {
		if f.name == name {
			value = f.value
		}
	}
	return value
}
