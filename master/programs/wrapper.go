package programs

import (
	"slices"
	"strings"
)

// wrapper is the command line of a program that becomes, or starts, the command that its last
// arguments are, and leaves it its descriptors and environment.
type wrapper struct {
	values   string   // short options that a value follows, in the same word or the next
	long     []string // long options that a value follows as a word of its own
	operands int      // words of its own before the command
	assigns  bool     // VARIABLE=value may stand before the command
	dirs     []string // of its options: the value is the command's working directory
	splits   []string // of its options: the value is the command, as one word
	clears   []string // options that empty the environment, and with it Node's channel is lost
}

// wrappers are known by name. sudo and its like are none: they close descriptors, and empty the
// environment.
var wrappers = map[string]wrapper{
	"env": {values: "uCS", long: []string{"--unset", "--chdir", "--split-string"}, assigns: true,
		dirs: []string{"-C", "--chdir"}, splits: []string{"-S", "--split-string"}, clears: []string{"-i", "-", "--ignore-environment"}},
	"nice":      {values: "n", long: []string{"--adjustment"}},
	"nohup":     {},
	"timeout":   {values: "ks", long: []string{"--kill-after", "--signal"}, operands: 1},
	"stdbuf":    {values: "ioe", long: []string{"--input", "--output", "--error"}},
	"ionice":    {values: "cn", long: []string{"--class", "--classdata"}},
	"chrt":      {values: "TPD", long: []string{"--sched-runtime", "--sched-period", "--sched-deadline"}, operands: 1},
	"taskset":   {operands: 1},
	"numactl":   {values: "CNmipPcw", long: []string{"--cpunodebind", "--physcpubind", "--membind", "--interleave", "--preferred", "--weighted-interleave"}},
	"prlimit":   {},
	"time":      {values: "fo", long: []string{"--format", "--output"}},
	"tini":      {values: "pe"},
	"dumb-init": {values: "r", long: []string{"--rewrite"}},
	"gosu":      {operands: 1},
	"su-exec":   {operands: 1},
	"setuidgid": {operands: 1},
	"runuser":   {values: "ugG", long: []string{"--user", "--group", "--supp-group"}},
	"setpriv": {long: []string{"--ambient-caps", "--inh-caps", "--bounding-set", "--ruid", "--euid", "--rgid", "--egid", "--reuid", "--regid",
		"--groups", "--securebits", "--pdeathsig", "--selinux-label", "--apparmor-profile", "--landlock-access", "--landlock-rule", "--seccomp-filter"},
		clears: []string{"--reset-env"}},
}

// enterWrapper takes a wrapper's own words away, and tells whether a command is left.
func (c *Command) enterWrapper(name string, w wrapper) bool {
	in := *c
	words := c.Args[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") {
		option, value, own := w.option(words)
		words = words[own:]
		if option == "--" {
			break
		}
		switch {
		case slices.Contains(w.clears, option):
			in.cutBy = name + " " + option
		case slices.Contains(w.dirs, option):
			in.enter(value)
		case slices.Contains(w.splits, option):
			split, ok := splitWords(value)
			if !ok {
				return false
			}
			words = append(split, words...)
		}
	}
	for w.assigns && len(words) > 0 && isAssignment(words[0]) {
		words = words[1:]
	}
	words = words[min(w.operands, len(words)):]
	if len(words) == 0 {
		return false
	}
	in.Args = words
	*c = in
	return true
}

// option returns the first option of words, its value if it has one, and how many words they are.
// Of short options in one word it is the last.
func (w *wrapper) option(words []string) (option, value string, own int) {
	word := words[0]
	if name, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(word, "--") {
		return name, value, 1
	}
	if strings.HasPrefix(word, "--") || word == "-" {
		if slices.Contains(w.long, word) && len(words) > 1 {
			return word, words[1], 2
		}
		return word, "", 1
	}
	for i := 1; i < len(word); i++ {
		option = "-" + word[i:i+1]
		if strings.Contains(w.values, word[i:i+1]) {
			if i+1 < len(word) {
				return option, word[i+1:], 1
			}
			if len(words) > 1 {
				return option, words[1], 2
			}
		}
	}
	return option, "", 1
}

// isAssignment tells whether a word is VARIABLE=value.
func isAssignment(word string) bool {
	name, _, ok := strings.Cut(word, "=")
	return ok && isName(name)
}

// isName tells whether text is the name of a variable.
func isName(text string) bool {
	for i, r := range text {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return text != ""
}
