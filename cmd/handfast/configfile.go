package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
)

// maxConfigFile bounds a file with configuration, in bytes.
const maxConfigFile = 1 << 20

// commandSetting is the one name in a configuration file that is no flag.
const commandSetting = "command"

// setting is one name of a configuration file, and its values: one, or those of a list.
type setting struct {
	name   string
	values []string
	line   int
}

func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, EnvVars: env("config"),
		Usage: "`FILE` in YAML, with the names of these flags and \"command\"; a flag, or its environment variable, comes before it",
	}
}

// readConfigFile reads the file that --config names, if it names one.
func readConfigFile(path string) ([]setting, error) {
	if path == "" {
		return nil, nil
	}
	text, err := readSmall(path)
	if err != nil {
		return nil, usagef("--config: %w", err)
	}
	settings, err := parseConfig(text)
	if err != nil {
		return nil, usagef("--config %s: %w", path, err)
	}
	return settings, nil
}

// parseConfig reads a mapping of names to values, or to lists of values.
func parseConfig(text []byte) (settings []setting, err error) {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF): // nothing but comments
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one document")
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want names and values, such as workers: 4", root.Line)
	}
	lines := map[string]int{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if lines[key.Value] != 0 {
			return nil, fmt.Errorf("line %d: %s is there already, in line %d", key.Line, key.Value, lines[key.Value])
		}
		lines[key.Value] = key.Line
		values, ok := scalars(value)
		if key.Kind != yaml.ScalarNode || !ok {
			return nil, fmt.Errorf("line %d: %s: want a value, or a list of values", key.Line, key.Value)
		}
		settings = append(settings, setting{key.Value, values, key.Line})
	}
	return settings, nil
}

// scalars returns a value, or those of a list.
func scalars(node *yaml.Node) (values []string, ok bool) {
	nodes := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		nodes = node.Content
	}
	for _, n := range nodes {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return nil, false
		}
		values = append(values, n.Value)
	}
	return values, true
}

// origins says, for each flag that is not at its default, where its value comes from.
type origins map[string]string

// isList tells whether a flag may be repeated.
func isList(f cli.Flag) bool {
	_, list := f.(*cli.StringSliceFlag)
	return list
}

// layer puts the values of the configuration file below those of flags and environment. It
// returns the command of the workers: that of the command line, else the file's.
func layer(c *cli.Context) (command []string, from origins, err error) {
	from = origins{}
	given := typed(c)
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		switch {
		case given[name]:
			from[name] = "--" + name
		case isList(f) && os.Getenv(env(name)[0]) == "": // a variable that is set to nothing is as none
		case f.IsSet():
			from[name] = "$" + env(name)[0]
		}
	}
	if command = c.Args().Slice(); len(command) > 0 {
		from[commandSetting] = "command line"
	}
	path := c.String("config")
	settings, err := readConfigFile(path)
	if err != nil {
		return nil, nil, err
	}
	var wrong error // all of it
	for _, s := range settings {
		origin := fmt.Sprintf("%s:%d", path, s.line)
		if flagOf(c.Command.Flags, s.name) == nil && flagOf(runFlags(), s.name) != nil {
			continue // run reads it
		}
		if s.name != commandSetting {
			if err := s.check(c); err != nil {
				wrong = join(wrong, usagef("%s: %w", origin, err))
				continue
			}
		}
		if from[s.name] != "" {
			continue
		}
		from[s.name] = origin
		if s.name == commandSetting {
			if command = s.values; len(command) == 1 && strings.ContainsAny(command[0], " \t") {
				wrong = join(wrong, usagef("%s: command: want a list, such as [%s]", origin, strings.Join(strings.Fields(command[0]), ", ")))
			}
			continue
		}
		for _, value := range s.values {
			if err := c.Set(s.name, value); err != nil {
				wrong = join(wrong, usagef("%s: %s: %q: %w", origin, s.name, value, valueMistake(flagOf(c.Command.Flags, s.name), value)))
			}
		}
	}
	return command, from, wrong
}

// check tells whether there is such a flag, and whether it takes as many values.
func (s setting) check(c *cli.Context) error {
	for _, f := range c.Command.Flags {
		if f.Names()[0] != s.name || s.name == "config" || s.name == "help" {
			continue
		}
		if _, list := f.(*cli.StringSliceFlag); !list && len(s.values) != 1 {
			return fmt.Errorf("%s: want one value", s.name)
		}
		return nil
	}
	names := append(flagNames(c.Command.Flags), commandSetting)
	names = slices.DeleteFunc(names, func(name string) bool { return name == "config" || name == "help" })
	if hint := nearest(s.name, names); hint != "" {
		return fmt.Errorf("%q is no name of a flag%s", s.name, didYouMean(hint))
	}
	return fmt.Errorf("%q is no name of a flag, and not command; 'handfast run --help' lists them", s.name)
}

// cite says where the values come from of flags that a message names and that nobody
// typed.
func (from origins) cite(message string) string {
	cited := ""
	for word := range strings.FieldsSeq(message) {
		name, isFlag := strings.CutPrefix(strings.TrimRight(word, ":,;"), "--")
		if origin := from[name]; isFlag && origin != "" && origin != "--"+name {
			cited += fmt.Sprintf(" (--%s is from %s)", name, origin)
		}
	}
	return cited
}
