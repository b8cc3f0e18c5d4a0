package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master/changes"
	"github.com/handfast/handfast/master/supervisor"
)

// reloader is a master that can be told to replace its workers.
type reloader interface{ Reload(context.Context) error }

// openFiles begins to watch the files of --restart-on-change. nil: there are none.
func (a *asked) openFiles() (*changes.Watcher, error) {
	if len(a.follow) == 0 {
		return nil, nil
	}
	w, err := changes.Open(a.follow)
	if err != nil {
		return nil, fmt.Errorf("--restart-on-change: %w", err)
	}
	return w, nil
}

// reloadOnChange borrows files and has m reload when they change, until the function is called that it returns.
func reloadOnChange(ctx context.Context, files *changes.Watcher, m reloader, log hclog.Logger) (stop func()) {
	if files == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		followChanges(ctx, files, m, log)
	}()
	return func() { cancel(); <-ended }
}

// followChanges reloads at each change. What changes during a reload makes another one afterwards. A reload that fails leaves the workers that there are, and
// the next change is waited for.
func followChanges(ctx context.Context, files *changes.Watcher, m reloader, log hclog.Logger) {
	for {
		changed, err := files.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Error("files are watched no more", "err", err, "flag", "--restart-on-change")
			return
		}
		log.Info("a file has changed, workers are replaced", "path", changed)
		switch err := m.Reload(ctx); {
		case err == nil:
		case ctx.Err() != nil, errors.Is(err, supervisor.ErrStopped):
			return
		default:
			log.Warn("what has changed does not work: the next change is waited for", "path", changed, "err", err)
		}
	}
}
