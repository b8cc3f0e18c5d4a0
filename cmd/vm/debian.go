package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ownMirror is where this machine has Debian from.
func ownMirror(ctx context.Context) string {
	said, _ := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages", "Origin: Debian").Output()
	for line := range strings.Lines(string(said)) {
		uri, codename, _ := strings.Cut(strings.TrimSpace(line), " ")
		if uri != "" && !strings.Contains(codename, "-") { // not security's or the updates'
			return uri
		}
	}
	return "http://deb.debian.org/debian/"
}

// A fetched machine is made of these files of Debian's archive.
type fetched struct {
	kernel  string
	busybox string
	modules []string // in the order in which they are loaded; some compressed by xz
	servers []string // packages
}

// servers are programs that know nothing of handfast, which tests run where they are.
var servers = []string{"python3", "nginx"}

// fetch has apt-get load what a machine is made of into dir, apart from what this machine has installed. What is there already, whole, is kept.
func fetch(ctx context.Context, mirror, dir, suite, arch string) (fetched, error) {
	if found, err := inside(dir); err == nil {
		return found, nil
	}
	if err := os.RemoveAll(dir); err != nil { // of an older kernel, or half of one
		return fetched{}, err
	}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "tree"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fetched{}, err
		}
	}
	sources := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(sources, fmt.Appendf(nil, "deb %s %s main\n", mirror, suite), 0o644); err != nil {
		return fetched{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "state/status"), nil, 0o644); err != nil {
		return fetched{}, err
	}
	apart := []string{
		"-o", "Dir::State=" + filepath.Join(dir, "state"), "-o", "Dir::State::status=" + filepath.Join(dir, "state/status"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "Dir::Etc::SourceList=" + sources, "-o", "Dir::Etc::SourceParts=/nowhere",
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "APT::Sandbox::User=", "-q",
	}
	apt := func(program string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, append(apart[:len(apart):len(apart)], args...)...)
		cmd.Dir = dir
		said, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, exit.Stderr)
		}
		return string(said), err
	}
	if _, err := apt("apt-get", "update"); err != nil {
		return fetched{}, err
	}
	depends, err := apt("apt-cache", "depends", "linux-image-cloud-"+arch)
	if err != nil {
		return fetched{}, err
	}
	_, kernel, found := strings.Cut(depends, "Depends: linux-image-")
	if !found {
		return fetched{}, fmt.Errorf("linux-image-cloud-%s depends on no kernel: %s", arch, depends)
	}
	version := strings.Fields(kernel)[0]
	wanted := []string{"download", "busybox-static", "linux-image-" + version}
	if depends, err = apt("apt-cache", "depends", wanted[2]); err != nil {
		return fetched{}, err
	}
	for line := range strings.Lines(depends) { // from Linux 7 on it is in several packages
		if _, part, _ := strings.Cut(strings.TrimSpace(line), "Depends: "); strings.HasSuffix(part, "-"+version) {
			wanted = append(wanted, part)
		}
	}
	if _, err := apt("apt-get", wanted...); err != nil {
		return fetched{}, err
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return fetched{}, err
	}
	if _, err := apt("apt-get", append([]string{"install", "--yes", "--download-only", "--no-install-recommends"}, servers...)...); err != nil {
		return fetched{}, err
	}
	for _, p := range packages {
		if err := run(ctx, "dpkg-deb", "--extract", p, filepath.Join(dir, "tree")); err != nil {
			return fetched{}, err
		}
	}
	return inside(dir)
}

// inside finds the files of a machine below a directory.
func inside(dir string) (fetched, error) {
	var found fetched
	for _, file := range []struct {
		path     *string
		patterns []string
	}{
		{&found.kernel, []string{"tree/boot/vmlinu*", "tree/usr/lib/modules/*/vmlinuz"}},
		{&found.busybox, []string{"tree/bin/busybox", "tree/usr/bin/busybox"}},
	} {
		for _, pattern := range file.patterns {
			if matches, _ := filepath.Glob(filepath.Join(dir, pattern)); len(matches) > 0 {
				*file.path = matches[0]
			}
		}
		if *file.path == "" {
			return found, fmt.Errorf("no %s in what the archive has", file.patterns)
		}
	}
	for _, module := range modules {
		for _, above := range []string{"tree/lib", "tree/usr/lib"} {
			matches, _ := filepath.Glob(filepath.Join(dir, above, "modules/*/kernel", module+".ko*"))
			found.modules = append(found.modules, matches...)
		}
	}
	if len(found.modules) != len(modules) {
		return found, fmt.Errorf("of modules %q the archive has %q", modules, found.modules)
	}
	if found.servers, _ = filepath.Glob(filepath.Join(dir, "cache/archives/*.deb")); len(found.servers) == 0 {
		return found, fmt.Errorf("no %s there", servers)
	}
	return found, nil
}

// modules are what handfast needs that kernels of Debian load when it is asked for.
var modules = []string{"net/ipv4/inet_diag", "net/ipv4/tcp_diag"}
