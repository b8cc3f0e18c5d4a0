package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// configPage is the name of the manual page of the configuration file.
const configPage = "handfast.yaml"

// settingExamples are files with each setting in their first line, and below it what it needs.
var settingExamples = map[string]string{
	"listen":         "listen: ['127.0.0.1:3000', '[::1]:3000']",
	"freebind":       "freebind: true\nlisten: 192.0.2.7:80",
	"slot-address":   "slot-address: 127.77.0.0/24",
	"workers":        "workers: 8",
	"name":           "name: shop",
	"hash-seed":      "hash-seed: 20261127",
	"ipv4-prefix":    "ipv4-prefix: 24",
	"ipv6-prefix":    "ipv6-prefix: 56",
	"key":            "key: cookie:PHPSESSID",
	"session":        "session: [cookie:sid, header:Mcp-Session-Id]",
	"new-sessions":   "new-sessions: least\nsession: header:Mcp-Session-Id",
	"session-idle":   "session-idle: 5m\nsession: header:Mcp-Session-Id",
	"drain-affinity": "drain-affinity: 10m",

	"behind-proxy":            "behind-proxy: true\nlisten: 127.0.0.1:3000",
	"proxy-header":            "proxy-header: X-Real-IP\nbehind-proxy: true",
	"trusted-proxies":         "trusted-proxies: loopback,10.0.0.0/8\nbehind-proxy: true",
	"trusted-hops":            "trusted-hops: 2\nbehind-proxy: true",
	"hand-back":               "hand-back: false\nbehind-proxy: true",
	"proxy-protocol":          "proxy-protocol: true",
	"proxy-protocol-optional": "proxy-protocol-optional: loopback,10.0.0.7\nproxy-protocol: true",
	"proxy-protocol-mode":     "proxy-protocol-mode: leave\nproxy-protocol: true",
	"header-timeout":          "header-timeout: 10s\nbehind-proxy: true",
	"header-limit":            "header-limit: 32KiB\nbehind-proxy: true",

	"route":       "route: master",
	"ebpf":        "ebpf: off",
	"worker-link": "worker-link: any",

	"retry-delay":              "retry-delay: 200ms",
	"max-retries":              "max-retries: 100",
	"max-parked":               "max-parked: 2000",
	"idle-timeout":             "idle-timeout: 3m",
	"max-per-client":           "max-per-client: 20",
	"max-connections-per-slot": "max-connections-per-slot: 500\nworker-link: native",
	"when-down":                "when-down: next\nworker-link: native",
	"refuse":                   "refuse: close",

	"ready-when":      "ready-when: http://127.0.0.1:900{slot}/health",
	"ready-timeout":   "ready-timeout: 2m",
	"sd-notify":       "sd-notify: true",
	"probation":       "probation: 30s",
	"drain-signal":    "drain-signal: TERM",
	"drain-timeout":   "drain-timeout: 10m",
	"drain-spread":    "drain-spread: 5m",
	"max-draining":    "max-draining: 2",
	"stop-timeout":    "stop-timeout: 1m",
	"stop-delay":      "stop-delay: 10s",
	"kill-timeout":    "kill-timeout: 20s",
	"watchdog":        "watchdog: 30s",
	"when-hung":       "when-hung: replace\nwatchdog: 30s",
	"healthy-when":    "healthy-when: tcp:127.0.0.1:900{slot}",
	"health-interval": "health-interval: 30s\nhealthy-when: tcp:127.0.0.1:900{slot}",
	"health-timeout":  "health-timeout: 10s\nhealthy-when: tcp:127.0.0.1:900{slot}",
	"health-failures": "health-failures: 5\nhealthy-when: tcp:127.0.0.1:900{slot}",
	"when-unhealthy":  "when-unhealthy: replace\nhealthy-when: tcp:127.0.0.1:900{slot}",
	"max-memory":      "max-memory: 512MiB",
	"max-age":         "max-age: 24h",
	"min-uptime":      "min-uptime: 5s",
	"backoff-min":     "backoff-min: 500ms",
	"backoff-max":     "backoff-max: 1m",
	"max-restarts":    "max-restarts: 10",

	"directory":    "directory: /srv/shop/current",
	"env":          "env: [NODE_ENV=production, 'PORT=900{slot}']",
	"env-file":     "env-file: /etc/shop/environment",
	"user":         "user: 1001",
	"group":        "group: 1001",
	"drop-root":    "drop-root: true\nuser: 1001",
	"no-new-privs": "no-new-privs: true",

	"admin":             "admin: ['127.0.0.1:9090']",
	"access-log":        "access-log: /var/log/shop/connections.log",
	"restart-on-change": "restart-on-change: [app, templates]",
	"worker-output":     "worker-output: json",
	"log-level":         "log-level: debug",
	"log-json":          "log-json: true",
}

// configExample is a whole file.
const configExample = `# /etc/handfast/handfast.yaml
listen: 127.0.0.1:3000
workers: 4
behind-proxy: true
directory: /srv/shop/current
env: [NODE_ENV=production]
drain-timeout: 10m
command: [node, server.js]
`

// kindOf is what a setting's value is in YAML.
func kindOf(f cli.Flag) string {
	switch f.(type) {
	case *cli.BoolFlag:
		return "true or false"
	case *cli.IntFlag, *cli.Uint64Flag:
		return "number"
	case *cli.DurationFlag:
		return "time"
	case *cli.StringSliceFlag:
		return "text, or list"
	default:
		return "text"
	}
}

// setting is a flag as the configuration file has it.
func (r *roff) setting(f cli.Flag) {
	name := f.Names()[0]
	h := helpOf(f)
	if is, ok := f.(*cli.BoolFlag); ok {
		h.byDefault = fmt.Sprint(is.Value)
	}
	about := []string{kindOf(f)}
	if h.byDefault != "" {
		about = append(about, "default: "+h.byDefault)
	}
	if variables := f.(cli.DocGenerationFlag).GetEnvVars(); len(variables) > 0 {
		about = append(about, "environment: "+variables[0])
	}
	fmt.Fprintf(r, ".TP\n\\fB%s\\fR\n", escaped(name))
	r.text(strings.ToUpper(h.usage[:1]) + h.usage[1:] + ".")
	fmt.Fprintln(r, ".br")
	r.text("(" + strings.Join(about, "; ") + ")")
	r.code(settingExamples[name])
}

// code is text as it is, in an item.
func (r *roff) code(text string) {
	fmt.Fprintf(r, ".IP\n.nf\n%s\n.fi\n", escaped(strings.TrimSpace(text)))
}

// configManual is the page of the configuration file.
func configManual(app *cli.App) string {
	var r roff
	fmt.Fprintf(&r, ".TH HANDFAST.YAML 5 %s \"handfast %s\"\n", built(), app.Version)
	r.section("NAME")
	fmt.Fprintln(&r, `handfast.yaml \- configuration of handfast`)
	r.section("SYNOPSIS")
	fmt.Fprintf(&r, ".nf\n%s\n.fi\n", escaped("handfast check --config handfast.yaml\nhandfast run --config handfast.yaml"))
	r.section("DESCRIPTION")
	r.text(`The flags of handfast run can be in a file. The file may have any name and be anywhere: --config names it, or HANDFAST_CONFIG. No file is read unless one is named.

A flag on the command line comes before its environment variable. The variable comes before the file, and the file before the default. A list is not added to: the first of these that has one is used alone.

handfast check --config FILE reads the file and starts no worker. It prints each setting, and the line of the file that it comes from. What it prints is itself such a file.

handfast upgrade reads the file again. handfast reload does not.`)
	r.section("FORMAT")
	r.text(`The file is one YAML document of at most 1 MiB: a mapping of names to values. Names are those of flags, without the dashes. Each name is there once. A name that handfast does not know is an error, which names the line.`)
	r.items([][2]string{
		{"text", "As it is. Quote what begins with one of [ { @ * & ! % # -, and what has \": \" or \" #\" in it: '@/etc/trusted'."},
		{"number", "A whole number: 4."},
		{"true or false", "As it is."},
		{"time", "A number and its unit: 200ms, 30s, 5m, 1h, 1h30m. Zero is 0 or 0s."},
		{"list", "In brackets, as [a, b], or one to a line, each after a dash. A setting that is repeatable takes a list; one value needs none."},
	})
	r.text("\nA relative path begins in the directory where handfast was started, not in that of the file. A command such as ./server begins in directory.")
	r.section("COMMAND")
	r.item(`\fBcommand\fR`, "The program that workers run, and its arguments, as a list. No shell reads it. A command on the command line, after --, comes before it.")
	r.code("command: [node, server.js, --color]")
	r.section("SETTINGS")
	r.text("Each example is a file that handfast takes. Where it has a second line, the setting needs it, or makes sense with it.")
	parts, of := grouped(runFlags())
	for _, part := range parts {
		fmt.Fprintf(&r, ".SS %s\n", escaped(part.title))
		for _, name := range part.names {
			if name != "config" {
				r.setting(of[name])
			}
		}
	}
	r.section("EXAMPLES")
	r.text("Four workers of a Node server behind a proxy on the same machine:")
	r.code(configExample)
	r.section(`"SEE ALSO"`)
	fmt.Fprintln(&r, ".BR handfast (8)")
	return r.String()
}
