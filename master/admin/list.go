package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/unixsocket"
)

const (
	// listTimeout is how long all masters together have to answer.
	listTimeout = 3 * time.Second
	// maxAsked is how many are asked at a time.
	maxAsked = 16
)

// Instance is what was found at a socket where masters listen by default. In JSON, null is what is not known.
type Instance struct {
	Name   string         `json:"name"`
	Admin  string         `json:"admin"`  // the socket's path
	PID    int            `json:"pid"`    // of the process that listens; 0: none does, or it is of another PID namespace
	UID    *int           `json:"uid"`    // whose that process is
	Left   bool           `json:"left"`   // nobody listens: one that was killed has left it
	Error  string         `json:"error"`  // why there is no status; empty: there is one
	Status *master.Status `json:"status"` // its answer
}

// List asks all masters of this user that listen where they do by default, and if this is root those of all users. It returns what
// answers in a few seconds and what does not, in the order of their names.
func List(ctx context.Context) (found []Instance) {
	for _, dir := range inhabited() {
		for _, path := range socketPaths(dir) {
			found = append(found, Instance{Name: nameIn(path), Admin: path})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var asking sync.WaitGroup
	places := make(chan struct{}, maxAsked)
	for i := range found {
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			found[i].ask(ctx)
		})
	}
	asking.Wait()
	slices.SortFunc(found, func(a, b Instance) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Admin, b.Admin)) })
	return found
}

// ask fills in who listens, and what it says.
func (i *Instance) ask(ctx context.Context) {
	c := NewClient(Address{"unix", i.Admin})
	conn, err := c.dial(ctx)
	switch {
	case errors.Is(err, ErrNotRunning):
		i.Left, i.Error = true, "nobody listens any more: one that was killed has left it, and the next of this name replaces it"
		return
	case err != nil:
		i.Error = err.Error()
		return
	}
	pid, uid := unixsocket.Peer(conn)
	conn.Close()
	if i.PID = pid; uid >= 0 {
		i.UID = &uid
	}
	status, err := c.Status(ctx)
	switch {
	case err == nil:
		i.Status = &status
	case ctx.Err() != nil:
		i.Error = fmt.Sprintf("it listens, and has not answered within %v", listTimeout)
	default:
		i.Error = err.Error()
	}
}

// inhabited returns the directories in which there may be masters that this user can ask: those of Find, and for root those of all
// users. Root has nothing to fear from what it finds there, since it only asks, and says whose process answers.
func inhabited() (dirs []string) {
	all := os.Geteuid() == 0 && os.Getenv("RUNTIME_DIRECTORY") == ""
	for _, dir := range directories() {
		if all || checkPrivate(dir) == nil {
			dirs = append(dirs, dir)
		}
	}
	if all {
		for _, pattern := range []string{"/run/*/" + DefaultName + suffix, "/run/user/*/handfast/*" + suffix, filepath.Join(os.TempDir(), "handfast-[0-9]*", "*"+suffix)} {
			paths, _ := filepath.Glob(pattern)
			for _, path := range paths {
				dirs = append(dirs, filepath.Dir(path))
			}
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// socketPaths returns the sockets in a runtime directory, in order.
func socketPaths(dir string) (paths []string) {
	paths, _ = filepath.Glob(filepath.Join(dir, "[^.]*"+suffix))
	return slices.DeleteFunc(paths, func(path string) bool {
		info, err := os.Lstat(path)
		return err != nil || info.Mode().Type() != fs.ModeSocket
	})
}

// nameIn is the name of the master whose socket has a path.
func nameIn(path string) string { return strings.TrimSuffix(filepath.Base(path), suffix) }
