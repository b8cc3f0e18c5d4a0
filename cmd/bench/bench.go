package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	// errFailed: a peer could not be measured; the report says which and why.
	errFailed = errors.New("a peer failed")
	// errNothing: what is to be measured is missing.
	errNothing = errors.New("nothing was measured")
)

// bench measures and reports.
func bench(ctx context.Context, set settings, stdout, stderr io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(set.output), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "handfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &runner{settings: set, dir: dir, progress: progress{to: stderr}, failed: map[failure]bool{}, report: report{settings: set, results: map[string]results{}}}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.handfast, err = build(ctx, dir); err != nil {
		return err
	}
	if b.files, err = raiseFileLimit(2*set.held + 2000); err != nil {
		return err
	}
	if b.node, err = writeNode(dir); err != nil {
		return err
	}
	b.report.works = nil // until they are done
	b.leaveOutMissing()
	b.fetch(ctx)
	interrupted := b.measureAll(ctx)
	if len(b.report.works) == 0 {
		return cmp.Or(interrupted, errNothing)
	}
	if err := b.report.write(stdout, set.output); err != nil {
		return err
	}
	if interrupted == nil && len(b.failed) > 0 {
		return errFailed
	}
	return interrupted
}

// build builds handfast from the tree that we are in.
func build(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "handfast")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/handfast/handfast/cmd/handfast").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// raiseFileLimit gives this process and those that it starts as many descriptors
// as they want, or as are allowed, and returns how many.
func raiseFileLimit(want int) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	limit.Cur = min(uint64(want), limit.Max)
	// By package syscall: the Go runtime then gives children this limit, and not
	// the one that it has found.
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	return int(limit.Cur), os.NewSyscallError("setrlimit", err)
}

// runner goes through works, rounds and peers.
type runner struct {
	settings
	self, handfast, node, dir string
	files                     int
	progress                  progress
	failed                    map[failure]bool
	report                    report
}

// failure is a row of a work that is not tried again.
type failure struct{ work, row string }

// leaveOutMissing leaves out the works and peers for which something is missing
// that a package has, and says so.
func (b *runner) leaveOutMissing() {
	b.works = slices.DeleteFunc(slices.Clone(b.works), func(w work) bool {
		return w.lacks != nil && b.missing(w.name, w.lacks())
	})
	b.peers = slices.DeleteFunc(slices.Clone(b.peers), func(p peer) bool { return b.missing(p.name, p.lacks()) })
	b.report.peers = b.peers
}

func (b *runner) missing(name, pkg string) bool {
	if pkg != "" {
		b.report.notef("%s is missing; to measure it: apt-get install %s", name, pkg)
	}
	return pkg != ""
}

// fetch fetches what peers need, or leaves them out.
func (b *runner) fetch(ctx context.Context) {
	tried := map[*prerequisite]error{nil: nil}
	b.peers = slices.DeleteFunc(b.peers, func(p peer) bool {
		if _, done := tried[p.needs]; !done {
			if tried[p.needs] = p.needs.get(ctx, b); tried[p.needs] != nil {
				b.report.notef("%s cannot be had, without which some peers are not measured: %v", p.needs.what, tried[p.needs])
			}
		}
		return tried[p.needs] != nil
	})
	b.report.peers = b.peers
}

// measureAll does the works. It returns an error only when ctx ends: then the
// report has the rounds that are whole. That a peer fails is noted.
func (b *runner) measureAll(ctx context.Context) error {
	for _, w := range b.works {
		b.progress.of += b.rounds * len(w.rows(b.peers))
	}
	b.progress.begin = time.Now()
	for _, w := range b.works {
		rows := w.rows(b.peers)
		if len(rows) == 0 {
			continue
		}
		found := results{}
		for round := range b.rounds {
			whole, err := b.measureRound(ctx, w, rows, round)
			if err != nil {
				b.report.add(w, found)
				b.report.notef("Interrupted in %s, round %d of %d.", w.name, round+1, b.rounds)
				return err
			}
			for name, s := range whole {
				found[name] = append(found[name], s)
			}
		}
		b.report.add(w, found)
	}
	return nil
}

// measureRound measures each row once; one that fails has a nil sample, also in
// the rounds that follow.
func (b *runner) measureRound(ctx context.Context, w work, rows []row, round int) (map[string]sample, error) {
	samples := map[string]sample{}
	for i := range rows {
		r := rows[(i+round)%len(rows)] // nobody is always first
		samples[r.name] = nil
		if b.failed[failure{w.name, r.name}] {
			b.progress.skip()
			continue
		}
		s, err := b.measure(ctx, w, r, round)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			b.failed[failure{w.name, r.name}] = true
			b.report.notef("%s failed in %s, round %d: %v", r.name, w.name, round+1, err)
		}
		samples[r.name] = s
	}
	return samples, nil
}

// measure starts a peer, does the work, and stops it.
func (b *runner) measure(ctx context.Context, w work, r row, round int) (sample, error) {
	b.progress.start("%s, round %d of %d: %s", w.name, round+1, b.rounds, r.name)
	dir, err := os.MkdirTemp(b.dir, r.peer.name)
	if err != nil {
		return nil, err
	}
	s := &stage{settings: b.settings, peer: r.peer, self: b.self, handfast: b.handfast, node: b.node, dir: dir, files: b.files, ctx: ctx}
	r.apply(&s.settings)
	defer s.close()
	var figures sample
	if err = s.open(); err == nil {
		figures, err = w.do(ctx, s)
	}
	if err != nil {
		reason, _, _ := strings.Cut(err.Error(), "\n") // the page has the logs too
		b.progress.end("failed: %s", reason)
		return nil, err
	}
	first := headline(w)
	if s.failure == nil {
		b.progress.end("%s %s", number(figures[first]), first)
	} else {
		b.progress.end("%s %s, %.0f failures: %v", number(figures[first]), first, figures[failures], s.failure)
	}
	return figures, nil
}

// headline is what progress shows of a work: its first column that is no ratio.
func headline(w work) string {
	for _, c := range w.columns {
		if c.over == "" {
			return c.of
		}
	}
	return ""
}
