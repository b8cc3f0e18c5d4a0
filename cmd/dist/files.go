package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
)

// A file is one that is installed. All kinds of packages have the same ones.
type file struct {
	path   string // where it is installed, absolute
	data   []byte
	mode   os.FileMode
	config bool // the administrator's: kept when the package is replaced
}

// said are the files that the program itself writes, and by which words.
var said = []struct {
	path string
	args []string
}{
	{"/usr/share/man/man8/handfast.8", []string{"man"}},
	{"/usr/share/man/man5/handfast.yaml.5", []string{"man", "handfast.yaml"}},
	{"/usr/share/bash-completion/completions/handfast", []string{"completion", "bash"}},
	{"/usr/share/zsh/vendor-completions/_handfast", []string{"completion", "zsh"}},
	{"/usr/share/fish/vendor_completions.d/handfast.fish", []string{"completion", "fish"}},
}

// copied are the files that are installed as they are in the sources.
var copied = []struct {
	path, source string
	config       bool
}{
	{path: "/etc/handfast/handfast.yaml", source: "examples/systemd/handfast.yaml", config: true},
	{path: "/usr/share/doc/handfast/copyright", source: "LICENSE"},
	{path: "/usr/share/doc/handfast/CHANGELOG.md", source: "CHANGELOG.md"},
}

const (
	programPath = "/usr/bin/handfast"
	unitPath    = "/usr/lib/systemd/system/handfast.service"
)

// files returns what is installed, sorted by path.
func (r *release) files(program string) ([]file, error) {
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	unit, err := os.ReadFile(filepath.Join(r.root, "examples/systemd/handfast.service"))
	if err != nil {
		return nil, err
	}
	files := []file{
		{path: programPath, data: binary, mode: 0o755},
		// Packages own /usr/bin, and /usr/local is the administrator's.
		{path: unitPath, data: bytes.ReplaceAll(unit, []byte("/usr/local/bin/handfast"), []byte(programPath)), mode: 0o644},
	}
	for _, c := range copied {
		data, err := os.ReadFile(filepath.Join(r.root, c.source))
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: c.path, data: data, mode: 0o644, config: c.config})
	}
	native, err := r.compile(runtime.GOARCH) // what it says is the same for all processors
	if err != nil {
		return nil, err
	}
	for _, s := range said {
		data, err := exec.Command(native, s.args...).Output()
		if err != nil {
			return nil, fmt.Errorf("handfast %v: %w", s.args, err)
		}
		files = append(files, file{path: s.path, data: data, mode: 0o644})
	}
	slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.path), []byte(b.path)) })
	return files, nil
}

// archive writes the .tar.gz: one directory, with files below it as they are installed below /.
func (r *release) archive(arch string, files []file) error {
	var packed bytes.Buffer
	compressed := gzip.NewWriter(&packed)
	if err := r.tar(compressed, path.Base(r.path(arch, "")), files); err != nil {
		return err
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return os.WriteFile(r.path(arch, ".tar.gz"), packed.Bytes(), 0o644)
}

// tar writes files below a directory, each directory before what is in it, all of root's and of the release's time.
func (r *release) tar(to interface{ Write([]byte) (int, error) }, below string, files []file) error {
	w := tar.NewWriter(to)
	made := map[string]bool{".": true}
	var directory func(name string) error
	directory = func(name string) error {
		if made[name] {
			return nil
		}
		made[name] = true
		if err := directory(path.Dir(name)); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: r.time})
	}
	for _, f := range files {
		name := path.Join(below, f.path[1:])
		if err := directory(path.Dir(name)); err != nil {
			return err
		}
		if f.mode.IsDir() {
			made[name] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o1777, ModTime: r.time}); err != nil {
				return err
			}
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(f.data)), Mode: int64(f.mode.Perm()), ModTime: r.time}); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	return w.Close()
}
