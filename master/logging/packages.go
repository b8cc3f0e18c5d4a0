package logging

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// packages are those that handfast is made of; their errors begin with their names.
var packages = []string{
	"acceptinject", "activation", "admin", "asuser", "balancer", "bindswap", "changes", "clientip", "early", "examples", "fdlimit", "fdpass", "foreign", "forwarded",
	"hash", "kernelroute", "launch", "listening", "logging", "mailbox", "master", "metrics", "nodeipc", "openconns", "output", "pgroup", "probe",
	"programs", "reexec", "reuseport", "sdnotify", "seccomp", "sock", "sockdiag", "supervisor", "systemd", "unixsocket",
}

// packagePrefix is what errors of those packages begin with, also where others wrap them.
var packagePrefix = regexp.MustCompile(`(?m)(^|: )(?:` + strings.Join(packages, "|") + `): `)

// WithoutPackages is an error's text without the names of handfast's packages, which mean nothing to people.
func WithoutPackages(text string) string {
	for packagePrefix.MatchString(text) {
		text = packagePrefix.ReplaceAllString(text, "$1")
	}
	return text
}

// ForOperators returns a logger whose lines do not name handfast's packages: errors and strings among a
// line's values are written as WithoutPackages says, but not the last words of a worker. Lines from Warn on end in
// help=NAME, if explained names where their message is explained.
func ForOperators(log hclog.Logger, explained func(message string) (name string)) hclog.Logger {
	return operators{log, explained}
}

type operators struct {
	hclog.Logger
	explained func(message string) string
}

// workersWords is the key of what a worker has written, which stays as it is.
const workersWords = "last_words"

// clean copies args only if there is something to leave out.
func clean(args []any) []any {
	copied := false
	for i := 1; i < len(args); i += 2 {
		var text string
		switch v := args[i].(type) {
		case error:
			text = v.Error()
		case string:
			text = v
		}
		without := WithoutPackages(text)
		if without == text || args[i-1] == workersWords {
			continue
		}
		if !copied {
			args, copied = slices.Clone(args), true
		}
		args[i] = without
	}
	return args
}

func (l operators) Log(level hclog.Level, message string, args ...any) {
	if level < l.GetLevel() {
		return
	}
	args = clean(args)
	if level >= hclog.Warn {
		if name := l.explained(message); name != "" {
			args = append(slices.Clip(args), "help", name)
		}
	}
	l.Logger.Log(level, message, args...)
}

func (l operators) Trace(message string, args ...any) { l.Log(hclog.Trace, message, args...) }
func (l operators) Debug(message string, args ...any) { l.Log(hclog.Debug, message, args...) }
func (l operators) Info(message string, args ...any)  { l.Log(hclog.Info, message, args...) }
func (l operators) Warn(message string, args ...any)  { l.Log(hclog.Warn, message, args...) }
func (l operators) Error(message string, args ...any) { l.Log(hclog.Error, message, args...) }

func (l operators) With(args ...any) hclog.Logger {
	return operators{l.Logger.With(clean(args)...), l.explained}
}
func (l operators) Named(name string) hclog.Logger {
	return operators{l.Logger.Named(name), l.explained}
}
func (l operators) ResetNamed(name string) hclog.Logger {
	return operators{l.Logger.ResetNamed(name), l.explained}
}
