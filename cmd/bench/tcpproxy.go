package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// The peer "tcpproxy" is a program of a module of its own: what it is made of is
// none of handfast's business. It is built when it is to be measured.

const tcpproxyName = "tcpproxy"

var tcpproxyBuilt = &prerequisite{"a module of Go", func(ctx context.Context, b *runner) error {
	return buildTCPProxy(ctx, b.dir)
}}

// buildTCPProxy builds it into dir.
func buildTCPProxy(ctx context.Context, dir string) error {
	source, err := tcpproxySource()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-C", source, "-o", filepath.Join(dir, tcpproxyName), ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// tcpproxySource is its folder in the tree that we are in.
func tcpproxySource() (string, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/handfast/handfast").Output()
	return filepath.Join(strings.TrimSpace(string(root)), "cmd/bench/tcpproxy"), err
}

func startTCPProxy(s *stage) error {
	workers, err := startPortWorkers(s, s.runPortWorker)
	if err != nil {
		return err
	}
	pid, err := s.run(nil, filepath.Join(filepath.Dir(s.handfast), tcpproxyName), append([]string{s.address.String()}, workers...)...)
	s.balancerPIDs = []int{pid}
	return err
}

// aboutTCPProxy is the version of the module, which is a commit.
func aboutTCPProxy() string {
	source, err := tcpproxySource()
	if err != nil {
		return ""
	}
	version, _ := exec.Command("go", "list", "-C", source, "-m", "-f", "{{.Version}}", "github.com/inetaf/tcpproxy").Output()
	return strings.TrimSpace(string(version))
}
