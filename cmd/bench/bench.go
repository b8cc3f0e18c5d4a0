package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// errFailed: a peer could not be measured; the report says which and why.
var errFailed = errors.New("a peer failed")

// bench measures and reports.
func bench(ctx context.Context, set settings, stdout, stderr io.Writer) error {
	dir, err := os.MkdirTemp("", "handfast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &runner{settings: set, dir: dir, progress: stderr, report: report{settings: set, results: map[string]results{}}}
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
	b.leaveOutMissing()
	b.leaveOutModules(ctx)
	if err := b.measureAll(ctx); err != nil {
		return err
	}
	if err := b.report.writeText(stdout); err != nil {
		return err
	}
	if set.output != "" {
		if err := b.report.writeMarkdown(set.output); err != nil {
			return err
		}
	}
	if len(b.failed) > 0 {
		return errFailed
	}
	return nil
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
	progress                  io.Writer
	failed                    map[string]bool // peers that are not tried again
	report                    report
}

func (b *runner) leaveOutMissing() {
	b.failed = map[string]bool{}
	var there []peer
	for _, p := range b.peers {
		if pkg := p.lacks(); pkg != "" {
			b.report.notef("%s is missing; to measure it: apt-get install %s", p.name, pkg)
			continue
		}
		there = append(there, p)
	}
	b.peers, b.report.peers = there, there
}

// leaveOutModules installs what npm has to, or leaves out the peers that need it.
func (b *runner) leaveOutModules(ctx context.Context) {
	needs := func(p peer) bool { return p.modules }
	if !slices.ContainsFunc(b.peers, needs) {
		return
	}
	if err := installModules(ctx, b.node); err != nil {
		b.report.notef("modules of npm are missing, without which some peers cannot be measured: %v", err)
		b.peers = slices.DeleteFunc(b.peers, needs)
		b.report.peers = b.peers
	}
}

// measureAll measures every peer of every work in every round. It returns an error only when
// ctx ends; that a peer fails is noted.
func (b *runner) measureAll(ctx context.Context) error {
	for _, w := range b.works {
		found, peers := results{}, w.among(b.peers)
		for round := range b.rounds {
			for i := range peers {
				p := peers[(i+round)%len(peers)] // nobody is always first
				if b.failed[p.name] {
					continue
				}
				s, err := b.measure(ctx, w, p, round)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					b.failed[p.name] = true
					b.report.notef("%s failed in %s, round %d: %v", p.name, w.name, round+1, err)
				}
				for len(found[p.name]) < round {
					found[p.name] = append(found[p.name], nil)
				}
				found[p.name] = append(found[p.name], s)
			}
		}
		b.report.results[w.name] = found
	}
	return nil
}

// measure starts a peer, does the work, and stops it.
func (b *runner) measure(ctx context.Context, w work, p peer, round int) (sample, error) {
	fmt.Fprintf(b.progress, "%s, round %d of %d: %s ", w.name, round+1, b.rounds, p.name)
	dir, err := os.MkdirTemp(b.dir, p.name)
	if err != nil {
		return nil, err
	}
	s := &stage{settings: b.settings, peer: p, self: b.self, handfast: b.handfast, node: b.node, dir: dir, files: b.files, ctx: ctx}
	defer s.close()
	var figures sample
	if err = s.open(); err == nil {
		figures, err = w.do(ctx, s)
	}
	if err != nil {
		fmt.Fprintf(b.progress, "failed: %v\n", err)
		return nil, err
	}
	first := headline(w)
	fmt.Fprintf(b.progress, "%s %s", number(figures[first]), first)
	if s.failure != nil {
		fmt.Fprintf(b.progress, ", %.0f failures: %v", figures[failures], s.failure)
	}
	fmt.Fprintln(b.progress)
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
