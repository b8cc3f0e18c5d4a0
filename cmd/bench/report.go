package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// report is all that a run has found out.
type report struct {
	settings
	notes   []string           // what is missing, and what went wrong
	results map[string]results // of each work
}

func (r *report) notef(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *report) writeText(w io.Writer) error {
	fmt.Fprintln(w, r.setting())
	for _, work := range r.works {
		fmt.Fprintf(w, "\n%s\n\n", work.title)
		if err := r.results[work.name].writeText(w, names(work.among(r.peers)), work.columns); err != nil {
			return err
		}
	}
	if len(r.notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, note := range r.notes {
		fmt.Fprintln(w, note)
	}
	return nil
}

func (r *report) writeMarkdown(path string) error {
	var page bytes.Buffer
	fmt.Fprintf(&page, "# Benchmark\n\n%s\n\n%s\n\n", machine(), r.setting())
	fmt.Fprintln(&page, "Each figure is the median of the rounds, with the least and the greatest in parentheses. In a round every "+
		"peer is started afresh and measured, one after the other; a ratio is formed within a round. "+
		"All peers of a table have the same workers, Go net/http if it does not say otherwise; only the way in which connections reach them differs. "+
		"The load generator runs on the same machine.")
	fmt.Fprintln(&page)
	for _, p := range r.peers {
		fmt.Fprintf(&page, "* %s: %s", p.name, p.what)
		if about := p.about(); about != "" {
			fmt.Fprintf(&page, "; %s", about)
		}
		fmt.Fprintln(&page)
	}
	for _, work := range r.works {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n", work.title, work.method)
		r.results[work.name].writeMarkdown(&page, names(work.among(r.peers)), work.columns)
	}
	if len(r.notes) > 0 {
		fmt.Fprintln(&page, "\n## Notes")
		fmt.Fprintln(&page)
	}
	for _, note := range r.notes {
		fmt.Fprintf(&page, "* %s\n", strings.ReplaceAll(note, "\n", "\n  "))
	}
	return os.WriteFile(path, page.Bytes(), 0o644)
}

// setting says what was done, in a line.
func (r *report) setting() string {
	return fmt.Sprintf("%d rounds of %v, %d workers, %d connections in flight, from %d clients.",
		r.rounds, r.duration, r.workers, r.concurrency, r.clients)
}

// machine says where.
func machine() string {
	var kernel unix.Utsname
	unix.Uname(&kernel)
	return fmt.Sprintf("%s, %d cores, %s %s, %s.", processor(), runtime.NumCPU(),
		unix.ByteSliceToString(kernel.Sysname[:]), unix.ByteSliceToString(kernel.Release[:]), runtime.Version())
}

// processor is the name of the processor's model.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range bytes.Lines(info) {
		name, value, _ := strings.Cut(string(line), ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// revision is the commit that this program was built from, if it is known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	revision, changed := "", ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = "commit " + setting.Value[:min(12, len(setting.Value))]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			changed = ", with changes"
		}
	}
	return revision + changed
}
