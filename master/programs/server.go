package programs

import (
	"bytes"
	"slices"
	"strings"
)

// Server is what we know of a server that knows nothing of us.
type Server struct {
	Name string
	// Forks: it serves with several processes by its nature, and seldom has in memory what belongs
	// to a client.
	Forks bool
	// OneProcess is what has it serve with one process; empty: it always does, or it cannot be told.
	OneProcess string
	// Inherits says what it takes inherited listeners by without more configuration, as this command
	// has it; empty: it does not.
	Inherits string
}

// servers are those that we know, by name.
var servers = map[string]struct {
	forks    bool
	one      string
	inherits func(c *Command, args []string) string
}{
	"gunicorn":       {one: "-w 1", inherits: func(*Command, []string) string { return "LISTEN_FDS" }},
	"uvicorn":        {one: "--workers 1", inherits: option("--fd")},
	"hypercorn":      {one: "-w 1", inherits: option("fd://")},
	"granian":        {one: "--workers 1"},
	"daphne":         {},
	"waitress-serve": {},
	"uwsgi":          {one: "--processes 1"},
	"puma":           {one: "-w 0"},
	"unicorn":        {one: "worker_processes 1"},
	"thin":           {},
	"falcon":         {one: "--count 1"},
	"starman":        {one: "--workers 1"},
	"hypnotoad":      {one: "workers => 1"},
	"php":            {one: "PHP_CLI_SERVER_WORKERS=1"},
	"nginx":          {forks: true, inherits: func(*Command, []string) string { return "NGINX, if it listens on just what --listen names" }},
	"php-fpm":        {forks: true, inherits: func(*Command, []string) string { return "FPM_SOCKETS, if it listens on just what --listen names" }},
	"haproxy":        {forks: true, inherits: option("fd@")},
	"apache":         {forks: true},
	"httpd":          {forks: true},
	"lighttpd":       {forks: true},
	"h2o":            {},
	"caddy":          {},
	"traefik":        {},
	"postgres":       {forks: true},
	"sshd":           {forks: true},
	"dovecot":        {forks: true},
	"prosody":        {},
	"mosquitto":      {},
	"memcached":      {},
	"redis-server":   {},
	"nats-server":    {},
}

// Server returns what we know of the program, if it is a server that we know.
func (c *Command) Server() (s Server, ok bool) {
	name, args := c.server()
	known, ok := servers[name]
	if !ok {
		return s, false
	}
	s = Server{Name: name, Forks: known.forks, OneProcess: known.one}
	if known.inherits != nil {
		s.Inherits = known.inherits(c, args)
	}
	return s, true
}

// server returns the name of a server, and its arguments, behind the interpreter that runs it.
func (c *Command) server() (name string, args []string) {
	if len(c.Args) == 0 {
		return "", nil
	}
	name, args = c.Name(), c.Args[1:]
	switch {
	case name == "python" || name == "pypy":
		for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-m" {
			args = args[1:]
		}
		if len(args) > 1 && args[0] == "-m" {
			args = args[1:]
		}
	case name == "bundle" && len(args) > 1 && args[0] == "exec",
		slices.Contains([]string{"poetry", "pipenv", "uv", "pdm", "hatch"}, name) && len(args) > 1 && args[0] == "run":
		args = args[1:]
	case slices.Contains([]string{"ruby", "perl"}, name):
	default:
		return name, args
	}
	if len(args) == 0 {
		return name, nil
	}
	in := Command{Args: args}
	return in.Name(), args[1:]
}

// maxConfig is how much of a file among the arguments is read.
const maxConfig = 1 << 20

// option returns a function that tells whether a text is in an argument, or in a file that one names.
func option(text string) func(c *Command, args []string) string {
	return func(c *Command, args []string) string {
		for _, arg := range args {
			if strings.Contains(arg, text) || bytes.Contains(readStart(c.path(arg), maxConfig), []byte(text)) {
				return text
			}
		}
		return ""
	}
}
