package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// report is all that a run has found out.
type report struct {
	settings
	notes   []string           // what is missing, and what went wrong
	results map[string]results // of each work in works, all of which have a whole round
}

func (r *report) notef(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// add adds what a work has found out, if a round is whole.
func (r *report) add(w work, found results) {
	if len(found) > 0 {
		r.works = append(r.works, w)
		r.results[w.name] = found
	}
}

// write writes it all to a terminal and, unless path is empty, as a page with plots.
func (r *report) write(terminal io.Writer, path string) error {
	if err := r.writeText(terminal); err != nil || path == "" {
		return err
	}
	for _, w := range r.works {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), plotFile(w)), r.plot(w), 0o644); err != nil {
			return err
		}
	}
	return r.writeMarkdown(path)
}

// plotFile is the name of a work's plot, which is beside the page.
func plotFile(w work) string { return w.name + ".svg" }

func (r *report) plot(w work) []byte {
	return plot(w.title, rowNames(w.rows(r.peers)), w.plots, r.results[w.name].cell)
}

func (r *report) writeText(w io.Writer) error {
	fmt.Fprintln(w, r.setting())
	for _, work := range r.works {
		fmt.Fprintf(w, "\n%s\n\n", work.title)
		if err := r.results[work.name].writeText(w, rowNames(work.rows(r.peers)), work.columns); err != nil {
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
		"The load generator runs on the same machine. Except for the download, which curl gets, it is our own: wrk, hey, oha and ab connect from one source "+
		"address, so that a sticky balancer would send all to one worker, and leave TIME-WAIT behind, which uses up that address's ports; "+
		"ours takes turns with many loopback addresses and resets each connection at its end.")
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
		fmt.Fprintf(&page, "![%s](%s)\n\n", work.title, plotFile(work))
		r.results[work.name].writeMarkdown(&page, rowNames(work.rows(r.peers)), work.columns)
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
	return fmt.Sprintf("%d rounds of %v, %d connections in flight, %d connections held, a download of %d MiB; "+
		"%d workers and %d clients where a table does not say otherwise.",
		r.rounds, r.duration, r.concurrency, r.held, r.download, r.workers, r.clients)
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
