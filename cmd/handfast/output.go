package main

import (
	"os"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/output"
)

// outputWords are the values of --worker-output.
var outputWords = []string{"auto", "prefix", "json", "raw"}

// outputMode settles --worker-output. terminal: standard error is one. logJSON: so is the log.
func outputMode(word string, terminal, logJSON bool) string {
	switch {
	case word != "auto":
		return word
	case logJSON:
		return "json"
	case terminal:
		return "prefix"
	default:
		return "raw"
	}
}

// outputMode settles it for this process.
func (a asked) outputMode() string {
	return outputMode(a.output, output.IsTerminal(os.Stderr), a.json)
}

// collectOutput says where workers print: beside the master's log, through which their lines go unless the mode is raw. Call stop when
// they have ended.
func collectOutput(a asked, config *master.Config, before *predecessor, log *logging.Queue) (stop func()) {
	terminal := output.IsTerminal(os.Stderr)
	mode := a.outputMode()
	same := output.Same(os.Stdout, os.Stderr)
	c := output.Config{Stdout: log, Stderr: log, Owner: config.Supervisor.Rights.User}
	out := log
	if !same {
		out = logging.NewQueue(os.Stdout)
		c.Stdout = out
	}
	switch mode {
	case "json":
		c.Form = output.JSON
	case "prefix":
		c.Form = output.Prefix
		if terminal {
			c.Terminal = os.Stderr
			c.InheritStdout = !same // sent elsewhere, it is wanted as it is
		}
	}
	collector := output.New(c)
	if mode != "raw" {
		config.Supervisor.NewOutput = collector.NewOutput
	}
	if before != nil {
		config.Supervisor.RestoreOutput = collector.RestoreOutput(before.bundle)
	}
	return func() {
		collector.Close()
		if out != log {
			out.Close()
		}
	}
}
