package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master/reuseport"
)

// The libraries' errors, from which we take flag and value: those of package flag on the
// command line (flag.go, parseOne), urfave/cli in the environment (flagFromEnvOrFile).
var (
	unknownFlag  = regexp.MustCompile(`^flag provided but not defined: -+(.*)$`)
	valueMissing = regexp.MustCompile(`^flag needs an argument: -+(.*)$`)
	badValue     = regexp.MustCompile(`^invalid (?:boolean )?value ("(?:[^"\\]|\\.)*") for (?:flag )?-+([^:]*): `)
	badVariable  = regexp.MustCompile(`^could not parse ("(?:[^"\\]|\\.)*") as .* value from environment variable "([^"]*)" for flag ([^:]*): `)
)

// flagMistake says of an error of the libraries which flag it is about, and what is wanted.
func flagMistake(c *cli.Context, err error) error {
	text := err.Error()
	flags := c.Command.Flags
	if m := unknownFlag.FindStringSubmatch(text); m != nil {
		typed := dashed(m[1])
		if hint := nearest(m[1], flagNames(flags)); hint != "" {
			return fmt.Errorf("no flag %s; did you mean --%s?", typed, hint)
		}
		if ofRun := runFlags(); c.Command.Name != "run" && slices.Contains(flagNames(ofRun), m[1]) {
			return fmt.Errorf("no flag %s: it is one of run: handfast run %[1]s …", typed)
		}
		return fmt.Errorf("no flag %s; 'handfast %s' lists them", typed, strings.TrimSpace(c.Command.Name+" --help"))
	}
	if m := valueMissing.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s: want %s", dashed(m[1]), wanted(flagOf(flags, m[1])))
	}
	if m := badValue.FindStringSubmatch(text); m != nil {
		value, _ := strconv.Unquote(m[1])
		return fmt.Errorf("%s %s: %w", dashed(m[2]), m[1], valueMistake(flagOf(flags, m[2]), value))
	}
	if m := badVariable.FindStringSubmatch(text); m != nil {
		value, _ := strconv.Unquote(m[1])
		return fmt.Errorf("%s=%s: %w", m[2], m[1], valueMistake(flagOf(flags, m[3]), value))
	}
	return err
}

// dashed is a flag's name as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func flagOf(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// flagNames are those of one letter, too.
func flagNames(flags []cli.Flag) (names []string) {
	for _, f := range flags {
		names = append(names, f.Names()...)
	}
	return append(names, "help")
}

// wanted is what a kind of flag takes.
func wanted(f cli.Flag) string {
	switch f.(type) {
	case *cli.IntFlag, *cli.Uint64Flag:
		return "a whole number"
	case *cli.DurationFlag:
		return "a time with its unit, such as 500ms, 10s or 1m30s"
	case *cli.BoolFlag:
		return "true or false"
	default:
		return "a value"
	}
}

// valueMistake says what is wanted of a value that does not parse.
func valueMistake(f cli.Flag, value string) error {
	hint := ""
	switch f.(type) {
	case *cli.DurationFlag:
		if n, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil && n >= 0 {
			hint = strings.TrimSpace(value) + "s"
		}
	case *cli.BoolFlag:
		hint = map[string]string{"yes": "true", "on": "true", "no": "false", "off": "false"}[strings.ToLower(value)]
	case *cli.IntFlag:
		if hint = map[string]string{"one": "1", "two": "2", "three": "3", "four": "4", "eight": "8"}[strings.ToLower(value)]; hint == "" && isWhole(value) {
			return errors.New("want a smaller number")
		}
	}
	return fmt.Errorf("want %s%s", wanted(f), didYouMean(hint))
}

func isWhole(text string) bool {
	return text != "" && strings.Trim(strings.TrimPrefix(text, "-"), "0123456789") == ""
}

// didYouMean is the end of a sentence; empty if there is nothing to suggest.
func didYouMean(what string) string {
	if what == "" {
		return ""
	}
	return "; did you mean " + what + "?"
}

// nearest returns the word that was probably meant where another one was typed; empty if that
// resembles none.
func nearest(typed string, words []string) string {
	plain := strings.NewReplacer("_", "-").Replace(strings.ToLower(typed))
	best, least := "", len(plain)
	for _, word := range words {
		d := distance(plain, strings.ToLower(word))
		if strings.ReplaceAll(plain, "-", "") == strings.ReplaceAll(strings.ToLower(word), "-", "") {
			d = 0
		}
		if d < least && d <= max(1, min(len(plain), len(word))/4) && len(word) > 1 {
			best, least = word, d
		}
	}
	return best
}

// distance is how many letters have to be changed, added, left out or exchanged with their neighbour
// (optimal string alignment).
func distance(a, b string) int {
	before, last, this := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range this {
		this[j] = j
	}
	for i := range len(a) {
		before, last, this = last, this, before
		this[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			this[j+1] = min(last[j+1]+1, this[j]+1, last[j]+change)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				this[j+1] = min(this[j+1], before[j-1]+1)
			}
		}
	}
	return this[len(b)]
}

// commandMistake says of a word that is no command what may have been meant.
func commandMistake(app *cli.App, args []string) error {
	name := args[0]
	if hint := nearest(name, commandWords(app)); hint != "" {
		return usagef("no command %q; did you mean handfast %s?", name, hint)
	}
	if _, err := exec.LookPath(name); err == nil {
		return usagef("no command %q; to serve with it: handfast run -- %s", name, strings.Join(args, " "))
	}
	return usagef("no command %q; there are %s", name, commandNames(app))
}

// commandWords are the commands' names, short ones too.
func commandWords(app *cli.App) (words []string) {
	for _, command := range app.Commands {
		words = append(words, command.Names()...)
	}
	return words
}

// ownVariables are those that we set ourselves, for workers and for the next program, and that
// are no flag's.
var ownVariables = []string{"FD", "SLOT", "SLOTS", "GENERATION", "ADDRESS", "REPORT", "PING", "BUNDLE"}

// foreignVariable are those that Kubernetes and container links make for a service that is named
// like us.
var foreignVariable = regexp.MustCompile(`^HANDFAST_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT|PORT)(?:_.*)?$`)

// variables looks for variables of ours that no flag reads: one that is nearly a flag's is a mistake;
// others are returned.
func (v *values) variables() (unknown []string) {
	flags := map[string]string{} // by what nearest compares
	for _, command := range v.App.Commands {
		for _, f := range command.Flags {
			if doc, ok := f.(cli.DocGenerationFlag); ok {
				for _, name := range doc.GetEnvVars() {
					flags[strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "HANDFAST_"), "_", "-"))] = name
				}
			}
		}
	}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		short, ours := strings.CutPrefix(name, "HANDFAST_")
		dashed := strings.ToLower(strings.ReplaceAll(short, "_", "-"))
		if !ours || value == "" || flags[dashed] == name || slices.Contains(ownVariables, short) || foreignVariable.MatchString(name) {
			continue
		}
		if hint := nearest(dashed, slices.Sorted(maps.Keys(flags))); hint != "" {
			v.fail("%s=%s: no flag has this variable%s", name, value, didYouMean(flags[hint]))
			continue
		}
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	return unknown
}

// listens returns the addresses of --listen.
func (v *values) listens() (addresses []string) {
	for _, address := range v.list("listen") {
		err := listenMistake(address)
		if err == nil {
			err = twice(address, addresses)
		}
		if err != nil {
			v.fail("--listen %q: %w", address, err)
		}
		addresses = append(addresses, address)
	}
	return addresses
}

// twice tells whether one of the others is in the way of an address.
func twice(address string, others []string) error {
	for _, other := range others {
		switch path := pathOfSocket(address); {
		case address == other && !strings.HasSuffix(address, ":0"):
			return errors.New("it is named twice")
		case path != "" && path == pathOfSocket(other):
			return fmt.Errorf("it is the same path as %s", other)
		case path == "" && samePort(address, other):
			return fmt.Errorf("it is the same port as %s", other)
		}
	}
	return nil
}

// samePort tells whether two addresses cannot be listened on both.
func samePort(one, other string) bool {
	a, err := net.ResolveTCPAddr("tcp", one)
	if err != nil || a.Port == 0 {
		return false
	}
	b, err := net.ResolveTCPAddr("tcp", other)
	if err != nil || a.Port != b.Port || a.Zone != "" && b.Zone != "" && a.Zone != b.Zone {
		return false
	}
	x, y := a.AddrPort().Addr().Unmap(), b.AddrPort().Addr().Unmap()
	return (!x.IsValid() || !y.IsValid() || x.Is4() == y.Is4()) && reuseport.Overlap(x, y) // [::] is IPv6 only
}

// listenMistake tells what is wrong with an address to listen on, as far as it can be seen.
func listenMistake(address string) error {
	const want = "want HOST:PORT, or :PORT for all addresses"
	if isSocket(address) {
		_, _, err := parseSocket(address)
		return err
	}
	_, port, err := net.SplitHostPort(address)
	rest, isURL := strings.CutPrefix(address, "http://")
	switch {
	case address == "":
		return errors.New(want)
	case isURL:
		return fmt.Errorf("%s%s", want, didYouMean(strings.TrimRight(rest, "/")))
	case err == nil && port == "":
		return fmt.Errorf("%s%s", want, didYouMean(address+"8080"))
	case err == nil:
		if isWhole(port) {
			if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
				return errors.New("want a port from 1 to 65535, or 0 for any that is free")
			}
			return nil
		}
		if _, err := net.LookupPort("tcp", port); err != nil {
			return fmt.Errorf("want a port's number after the last colon, not %q", port)
		}
		return nil
	case isWhole(address):
		return fmt.Errorf("%s%s", want, didYouMean(":"+address))
	}
	if strings.HasPrefix(address, "/") {
		return fmt.Errorf("%s%s", want, didYouMean(unixScheme+address))
	}
	if i := strings.LastIndexByte(address, ':'); i > 0 && net.ParseIP(address[:i]) != nil { // without brackets
		return fmt.Errorf("%s%s", want, didYouMean(net.JoinHostPort(address[:i], cmp.Or(address[i+1:], "8080"))))
	}
	if net.ParseIP(address) != nil || !strings.Contains(address, ":") {
		return fmt.Errorf("%s%s", want, didYouMean(net.JoinHostPort(address, "8080")))
	}
	return errors.New(want)
}
