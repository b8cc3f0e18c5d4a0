package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand is `handfast man`.
func manCommand() *cli.Command {
	return &cli.Command{
		Name:      "man",
		Usage:     "print the manual page, made from the help of all commands, or that of the configuration file",
		ArgsUsage: "[" + configPage + "]",
		Description: "  handfast man | man -l -\n" +
			"  handfast man handfast.yaml | man -l -\n" +
			"  handfast man > /usr/local/share/man/man8/handfast.8",
		Action: func(c *cli.Context) error {
			page := manual
			switch words := strings.Join(c.Args().Slice(), " "); words {
			case "":
			case configPage:
				page = configManual
			default:
				return usagef("man: want nothing, or %s, got %q", configPage, words)
			}
			_, err := io.WriteString(c.App.Writer, page(c.App))
			return err
		},
	}
}

// The parts of the manual besides the help of commands.
var (
	manualExamples = []struct{ text, command string }{
		{"A server that knows nothing of handfast, with a worker for each CPU:", "handfast run --listen :8080 -- gunicorn -b :8080 app:app"},
		{"A Node server behind nginx:", "handfast run --listen 127.0.0.1:3000 --behind-proxy -- node server.js"},
		{"With a configuration file, after it was looked at:", "handfast check --config handfast.yaml && handfast run --config handfast.yaml"},
		{"A new version of the server, and then of handfast itself:", "handfast reload && handfast upgrade"},
		{"As a health check:", "handfast status --ready"},
	}
	manualFiles = [][2]string{
		{"/run/handfast/NAME.sock", "The socket for status and commands of a handfast that root has started. Under systemd it is in $RUNTIME_DIRECTORY."},
		{"$XDG_RUNTIME_DIR/handfast/NAME.sock", "The same of another user; without that variable /tmp/handfast-UID/NAME.sock."},
		{"FILE of --config", "YAML, with the names of flags, and command, a list: handfast.yaml(5), or handfast man handfast.yaml. A flag comes before its variable, and that before the file."},
	}
	manualSignals = [][2]string{
		{"SIGUSR2", "Reload: all workers are replaced, one by one. During a reload: once more afterwards."},
		{"SIGHUP", "Upgrade: the master's own program, and its configuration, are replaced. With a terminal as standard input: as SIGTERM."},
		{"SIGTTIN, SIGTTOU", "One slot more, one less."},
		{"SIGUSR1", "The access log is opened anew."},
		{"SIGTERM, SIGINT", "After --stop-delay nothing more is accepted, what is open is finished within --stop-timeout, and handfast exits. A second one, at least a second later, ends the delay; if there is none the workers are killed, and handfast exits at once."},
	}
	manualStatus = [][2]string{
		{"0", "Stopped as asked, or done. Of check: run would start."},
		{"1", "Could not start, could not go on, was stopped by force, or a command has failed. Of status --ready: a slot has no worker that is ready."},
		{"2", "The command line, the environment or the configuration makes no sense."},
		{"3", "Workers kept dying young, more often than --max-restarts allows."},
	}
	manualVariables = [][2]string{
		{"HANDFAST_...", "Each flag of run has a variable: --retry-delay is HANDFAST_RETRY_DELAY. Several addresses are separated by commas."},
		{"HANDFAST_SLOT, HANDFAST_SLOTS, HANDFAST_GENERATION", "What a worker learns of itself. worker/README.md has the others."},
	}
)

// roff writes a page in the language of man(7), in lines of at most manualWidth bytes.
type roff struct{ strings.Builder }

const manualWidth = 78

// escaped is text that stands for itself.
func escaped(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "…", "...", "–", `\(en`).Replace(text)
}

func (r *roff) section(title string) { fmt.Fprintf(r, ".SH %s\n", title) }

// text is a paragraph. Lines that begin with two spaces stay as they are.
func (r *roff) text(text string) {
	literal := false
	for _, line := range fill(escaped(text), manualWidth) {
		if is := strings.HasPrefix(line, "  "); is != literal {
			literal = is
			fmt.Fprintln(r, map[bool]string{true: ".nf", false: ".fi"}[literal])
		}
		switch {
		case line == "":
			line = ".PP"
		case line[0] == '.' || line[0] == '\'':
			line = `\&` + line
		}
		fmt.Fprintln(r, line)
	}
	if literal {
		fmt.Fprintln(r, ".fi")
	}
}

// item is a term and what it means.
func (r *roff) item(term, text string) {
	fmt.Fprintf(r, ".TP\n%s\n", term)
	r.text(text)
}

func (r *roff) items(items [][2]string) {
	for _, item := range items {
		r.item(`\fB`+escaped(item[0])+`\fR`, item[1])
	}
}

func (r *roff) flags(flags []cli.Flag) {
	parts, of := grouped(flags)
	for _, part := range parts {
		if len(parts) > 1 {
			fmt.Fprintf(r, ".SS %s\n", escaped(part.title))
		}
		for _, name := range part.names {
			h := helpOf(of[name])
			term := `\fB` + escaped(h.names) + `\fR`
			if h.value != "" {
				term += ` \fI` + escaped(h.value) + `\fR`
			}
			if h.byDefault != "" {
				h.usage += " (default: " + h.byDefault + ")"
			}
			r.item(term, h.usage)
		}
	}
}

// manual is the page.
func manual(app *cli.App) string {
	var r roff
	fmt.Fprintf(&r, ".TH HANDFAST 8 %s \"handfast %s\"\n", built(), app.Version)
	r.section("NAME")
	fmt.Fprintf(&r, "handfast \\- %s\n", escaped(app.Usage))
	r.section("SYNOPSIS")
	fmt.Fprintln(&r, ".nf")
	for line := range strings.SplitSeq(app.UsageText, "\n") {
		fmt.Fprintln(&r, escaped(line))
	}
	fmt.Fprintln(&r, ".fi")
	r.section("DESCRIPTION")
	r.text(app.Description)
	r.section("COMMANDS")
	for _, command := range app.Commands {
		if command.Name == "help" {
			continue
		}
		fmt.Fprintf(&r, ".SS %s\n", escaped(strings.TrimRight("handfast "+command.Name+" "+command.ArgsUsage, " ")))
		r.text(strings.ToUpper(command.Usage[:1]) + command.Usage[1:] + ".\n\n" + command.Description)
		switch command.Name {
		case "run", "check":
			r.text("\nIts flags are in FLAGS.")
		default:
			r.flags(command.Flags)
		}
	}
	r.section("FLAGS")
	r.text("Of run, and of check.")
	r.flags(runFlags())
	r.section("ENVIRONMENT")
	r.items(manualVariables)
	r.section("FILES")
	r.items(manualFiles)
	r.section("SIGNALS")
	r.items(manualSignals)
	r.section(`"EXIT STATUS"`)
	r.items(manualStatus)
	r.section("EXAMPLES")
	for i, example := range manualExamples {
		if i > 0 {
			fmt.Fprintln(&r, ".PP")
		}
		r.text(example.text)
		fmt.Fprintf(&r, ".PP\n.nf\n.RS 4\n%s\n.RE\n.fi\n", escaped(example.command))
	}
	r.section(`"SEE ALSO"`)
	fmt.Fprintln(&r, ".BR handfast.yaml (5),\n.BR systemd.socket (5),\n.BR seccomp (2),\n.BR unix (7)")
	return r.String()
}

// built is the day of this program's source, or else of its file.
func built() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" && len(s.Value) >= len("2006-01-02") {
				return s.Value[:len("2006-01-02")]
			}
		}
	}
	if self, err := os.Executable(); err == nil {
		if info, err := os.Stat(self); err == nil {
			return info.ModTime().UTC().Format("2006-01-02")
		}
	}
	return `""`
}

// completionCommand is `handfast completion`.
func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script with which a shell completes commands, flags and values",
		ArgsUsage: "bash|zsh|fish",
		Description: "  bash: source <(handfast completion bash)\n" +
			"  zsh:  source <(handfast completion zsh)\n" +
			"  fish: handfast completion fish > ~/.config/fish/completions/handfast.fish",
		Action: func(c *cli.Context) error {
			script := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Args().First()]
			if script == "" || c.NArg() > 1 {
				return usagef("completion: want bash, zsh or fish, got %q", strings.Join(c.Args().Slice(), " "))
			}
			_, err := io.WriteString(c.App.Writer, script)
			return err
		},
	}
}
