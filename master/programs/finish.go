package programs

import (
	"slices"
	"strings"
	"syscall"
)

// drainSignals has, for each program of which we know one, the signal on which it finishes what it has and
// exits. The whole process group gets it. Each was observed with two requests of three seconds in
// flight (Debian 12).
//
// All others lose what they have (a Go or Node program without a handler, http.server, tornado,
// websockets, flask, twisted, daphne, starman, Java without a shutdown hook, redis, memcached,
// mosquitto, dnsmasq, iperf3), or a part of it (php -S, which finishes one request on INT), or do
// not end (uwsgi reloads on TERM), or nobody knows what they do.
var drainSignals = map[string]syscall.Signal{
	"nginx":         syscall.SIGQUIT,
	"php-fpm":       syscall.SIGQUIT, // set process_control_timeout, or it waits for nobody
	"apache":        syscall.SIGWINCH,
	"httpd":         syscall.SIGWINCH,
	"haproxy":       syscall.SIGUSR1,
	"lighttpd":      syscall.SIGINT,
	"h2o":           syscall.SIGTERM,
	"caddy":         syscall.SIGTERM,
	"gunicorn":      syscall.SIGTERM,
	"uvicorn":       syscall.SIGTERM, // closes what it has accepted and not read from
	"hypercorn":     syscall.SIGINT,  // with TERM its --workers lose all
	"puma":          syscall.SIGTERM, // and dies of it in the end
	"thin":          syscall.SIGTERM,
	"unicorn":       syscall.SIGQUIT,
	"unicorn_rails": syscall.SIGQUIT,
	"hypnotoad":     syscall.SIGQUIT,
	"nats-server":   syscall.SIGUSR2, // lame duck mode: sends its clients away one by one
}

// DrainSignal returns the signal on which the program of a command is known to finish, and its name.
// That is also that of the script or module that an interpreter runs.
func DrainSignal(command []string) (signal syscall.Signal, name string, known bool) {
	c := Resolve(command)
	name = c.Name()
	if name == "bundle" && len(c.Args) > 2 && c.Args[1] == "exec" {
		c = Resolve(c.Args[2:])
		name = c.Name()
	}
	if slices.Contains(interpreters, name) {
		c.Args = scriptOf(c.Args[1:])
		name = c.Name()
	}
	signal, known = drainSignals[name]
	return signal, name, known
}

var interpreters = []string{"python", "pypy", "ruby", "perl"}

// scriptOf returns the arguments of an interpreter from the script or module on.
func scriptOf(args []string) []string {
	for i, arg := range args {
		switch {
		case arg == "-m":
			return args[i+1:]
		case arg == "-c", arg == "-e":
			return nil
		case !strings.HasPrefix(arg, "-"):
			return args[i:]
		}
	}
	return nil
}
