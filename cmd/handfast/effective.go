package main

import (
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"github.com/handfast/handfast/master/admin"
)

// writeEffective writes all settings and where each comes from, in the form of a
// configuration file.
func writeEffective(w io.Writer, c *cli.Context, a asked) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	add := func(name string, value *yaml.Node) {
		origin := a.from[name]
		if origin == "" {
			origin = "default"
		}
		if _, from := defaultWorkers(); name == "workers" && origin == "default" {
			origin = from
		}
		if value.Kind == yaml.SequenceNode && len(value.Content) == 0 {
			origin = "none"
		}
		value.LineComment = origin
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, value)
	}
	for _, f := range c.Command.Flags {
		if name := f.Names()[0]; name != "config" && name != "help" {
			add(name, a.valueOf(c, f))
		}
	}
	if command := a.config.Supervisor.Command; len(command) > 0 {
		add(commandSetting, list(command))
	}
	encoder := yaml.NewEncoder(w)
	defer encoder.Close()
	return encoder.Encode(root)
}

// valueOf is a flag's value as it is written in a configuration file.
func (a asked) valueOf(c *cli.Context, f cli.Flag) *yaml.Node {
	name := f.Names()[0]
	value := &yaml.Node{}
	switch f.(type) {
	case *cli.StringSliceFlag:
		if name == "listen" {
			return list(a.addresses())
		}
		v := values{Context: c, from: a.from}
		if name == "admin" && a.answers.byName {
			return list(append([]string{admin.ByName(a.answers.name).Address}, v.admins()...))
		}
		return list(v.list(name))
	case *cli.DurationFlag:
		value.SetString(durationText(c.Duration(name)))
	case *cli.StringFlag:
		value.SetString(c.String(name))
	default: // numbers and truths have only one form
		value.Encode(c.Value(name))
	}
	return value
}

func list(values []string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, text := range values {
		value := &yaml.Node{}
		value.SetString(text)
		node.Content = append(node.Content, value)
	}
	return node
}

// durationText is short: 1h and not 1h0m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
