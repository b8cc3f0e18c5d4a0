// Package changes tells when files have changed, for a master that is to reload then (inotify(7)). It is for development: what is watched is bound, and what
// editors and programs leave beside the files that count does not count.
package changes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// MaxDirectories is how many directories are watched at most.
	MaxDirectories = 4096
	// Quiet is how long nothing must have changed after a change: an editor, or a build, writes several files.
	Quiet = 200 * time.Millisecond
	// Longest is how long that is waited for, if there is always something that changes.
	Longest = 5 * time.Second
)

// ErrTooMany: there are more directories than are watched. It is the caller's fault.
var ErrTooMany = fmt.Errorf("more than %d directories; name those that the sources are in", MaxDirectories)

// what is told of a directory's entries. A file counts when it was written, and not yet when it is created; a link, or a directory, at once.
const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CREATE | unix.IN_ONLYDIR

// Watcher watches files, and directories with all that is below. It is for one goroutine.
type Watcher struct {
	paths []string
	file  *os.File
	known map[int]directory // by watch descriptor

	quiet, longest time.Duration
}

// directory is one that is watched.
type directory struct {
	path string
	all  bool            // that is in it counts
	only map[string]bool // else only entries of these names
}

// Open begins to watch what is at the paths, which must exist. One may be a link: it counts as well when it leads elsewhere later.
func Open(paths []string) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("changes: %w; sysctl fs.inotify.max_user_instances bounds how many watch", os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{paths: paths, file: os.NewFile(uintptr(fd), "inotify"), quiet: Quiet, longest: Longest}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			w.Close()
			return nil, fmt.Errorf("changes: %w", err)
		}
	}
	if err := w.walk(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends it. Of nil there is nothing to end.
func (w *Watcher) Close() error {
	if w == nil {
		return nil
	}
	return w.file.Close()
}

// walk watches all directories that there are now, and no others. What has gone in the meantime is left out.
func (w *Watcher) walk() error {
	before := w.known
	w.known = make(map[int]directory)
	for _, path := range w.paths {
		if err := w.add(filepath.Dir(path), directory{path: filepath.Dir(path), only: map[string]bool{filepath.Base(path): true}}); err != nil {
			return err
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue // it will be there again, in its directory
		}
		err = filepath.WalkDir(real, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil
			case !entry.IsDir():
				return nil
			case path != real && ignored(entry.Name()):
				return fs.SkipDir
			}
			return w.add(path, directory{path: path, all: true})
		})
		if err != nil {
			return err
		}
	}
	for wd := range before {
		if _, ok := w.known[wd]; !ok {
			unix.InotifyRmWatch(w.fd(), uint32(wd))
		}
	}
	return nil
}

// add watches a directory, which may be watched already for other entries.
func (w *Watcher) add(path string, d directory) error {
	wd, err := unix.InotifyAddWatch(w.fd(), path, mask)
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		return nil
	case err == unix.ENOSPC:
		return errors.New("changes: this user watches too much; raise sysctl fs.inotify.max_user_watches")
	case err != nil:
		return fmt.Errorf("changes: %s: %w", path, os.NewSyscallError("inotify_add_watch", err))
	}
	if other, ok := w.known[wd]; ok {
		d.all = d.all || other.all
		for name := range other.only {
			if d.only == nil {
				d.only = make(map[string]bool)
			}
			d.only[name] = true
		}
	}
	if w.known[wd] = d; len(w.known) > MaxDirectories {
		return fmt.Errorf("changes: %s: %w", path, ErrTooMany)
	}
	return nil
}

// fd is for calls that do not wait. The file stays in non-blocking mode, which File.Fd would end.
func (w *Watcher) fd() (fd int) {
	raw, err := w.file.SyscallConn()
	if err == nil {
		raw.Control(func(f uintptr) { fd = int(f) })
	}
	return fd
}

// Next waits until something changes, and then for Quiet, and returns the path of what has changed first. err is ctx's when that ends, or says why
// nothing can be watched any more.
func (w *Watcher) Next(ctx context.Context) (changed string, err error) {
	w.file.SetReadDeadline(time.Time{}) // before what ends the reading: that must not be undone
	defer context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })()
	if changed, err = w.read(); err == nil {
		// What comes soon belongs to it.
		for latest := time.Now().Add(w.longest); err == nil; {
			w.file.SetReadDeadline(earlier(time.Now().Add(w.quiet), latest))
			_, err = w.read()
		}
	}
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return changed, nil
	}
	return "", err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// read waits for something that counts, and returns its path.
func (w *Watcher) read() (changed string, err error) {
	buf := make([]byte, 64<<10)
	for changed == "" {
		n, err := w.file.Read(buf)
		if err != nil {
			return "", fmt.Errorf("changes: %w", err)
		}
		again := false
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:][:event.Len]), "\x00")
			b = b[unix.SizeofInotifyEvent+int(event.Len):]
			path, counts := w.counts(event, name)
			if counts && changed == "" {
				changed = path
			}
			again = again || counts && event.Mask&(unix.IN_ISDIR|unix.IN_Q_OVERFLOW) != 0 || w.isRoot(path)
		}
		if again {
			if err := w.walk(); err != nil {
				return "", err
			}
		}
	}
	return changed, nil
}

// counts tells whether an event is a change, and where.
func (w *Watcher) counts(event *unix.InotifyEvent, name string) (path string, counts bool) {
	if event.Mask&unix.IN_Q_OVERFLOW != 0 { // more has changed than the kernel keeps
		return w.paths[0], true
	}
	d, ok := w.known[int(event.Wd)]
	if !ok || name == "" { // no longer watched, or the watch itself has ended
		return "", false
	}
	path = filepath.Join(d.path, name)
	if !d.only[name] && (!d.all || ignored(name)) {
		return path, false
	}
	if event.Mask&unix.IN_CREATE != 0 && event.Mask&unix.IN_ISDIR == 0 { // of a file there is more to come
		info, err := os.Lstat(path)
		return path, err == nil && info.Mode()&fs.ModeSymlink != 0
	}
	return path, true
}

// isRoot tells whether it is one of the paths, behind which there may be another directory now.
func (w *Watcher) isRoot(path string) bool {
	for _, root := range w.paths {
		if path == filepath.Clean(root) {
			return true
		}
	}
	return false
}

// ignored tells whether an entry of a directory is nothing that somebody has written on purpose: hidden (.git, .file.swp, .#file), a copy or a test of an editor
// (file~, #file#, 4913 of Vim), or what interpreters and package managers keep there.
func ignored(name string) bool {
	switch name {
	case "4913", "__pycache__", "node_modules":
		return true
	}
	for _, end := range []string{"~", ".swp", ".swx", ".tmp", ".pyc"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#")
}
