package main

import (
	"os"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	nfpmfiles "github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// What the package systems run. A server that runs goes on: the new program takes over from the old one with its
// listeners, workers and connections (see `handfast upgrade --help`). `systemctl kill` would do, but how it is told of the
// main process alone has changed with systemd 252. rpm says 1, dpkg "remove", when the package goes for good.
const (
	postInstall = `#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if systemctl is-active --quiet handfast; then
		kill -s HUP "$(systemctl show --property=MainPID --value handfast)"
	fi
fi
`
	preRemove = `#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = 0 ]; then
	if [ -d /run/systemd/system ]; then
		systemctl disable --now handfast
	fi
fi
`
	postRemove = `#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
`
)

// packages writes the .deb and the .rpm.
func (r *release) packages(arch string, files []file) error {
	stage := filepath.Join(r.work, arch)
	var contents nfpmfiles.Contents
	for _, f := range files {
		source := filepath.Join(stage, "tree", f.path)
		if err := write(source, f.data, f.mode); err != nil {
			return err
		}
		kind := nfpmfiles.TypeFile
		if f.config {
			kind = nfpmfiles.TypeConfigNoReplace
		}
		contents = append(contents, &nfpmfiles.Content{Source: source, Destination: f.path, Type: kind,
			FileInfo: &nfpmfiles.ContentFileInfo{Mode: f.mode, Owner: "root", Group: "root", MTime: r.time}})
	}
	scripts := nfpm.Scripts{}
	for _, s := range []struct {
		to           *string
		name, script string
	}{
		{&scripts.PostInstall, "postinst", postInstall},
		{&scripts.PreRemove, "prerm", preRemove},
		{&scripts.PostRemove, "postrm", postRemove},
	} {
		*s.to = filepath.Join(stage, s.name)
		if err := write(*s.to, []byte(s.script), 0o755); err != nil {
			return err
		}
	}
	for _, kind := range []string{"deb", "rpm"} {
		info := nfpm.WithDefaults(&nfpm.Info{
			Name: "handfast", Arch: arch, Platform: "linux", Version: r.version, MTime: r.time,
			Section: "net", Priority: "optional", License: "MIT",
			Homepage:   "https://github.com/handfast/handfast",
			Maintainer: "The handfast authors <handfast@users.noreply.github.com>",
			Description: "run a TCP server as several workers, with sticky connections\n" +
				"A client's connections always go to the same worker, which is handed the open\n" +
				"connection: nothing is copied, and workers are replaced without losing one.",
			DisableGlobbing: true,
			Overridables:    nfpm.Overridables{Contents: contents, Scripts: scripts, RPM: nfpm.RPM{BuildHost: "localhost"}},
		})
		packager, err := nfpm.Get(kind)
		if err != nil {
			return err
		}
		if err := nfpm.PrepareForPackager(info, kind); err != nil {
			return err
		}
		out, err := os.Create(r.path(arch, "."+kind))
		if err != nil {
			return err
		}
		if err := packager.Package(info, out); err != nil {
			out.Close()
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file, and the directories above it.
func write(name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, mode)
}
