package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The work "node" compares peers of Node: every one serves, the sticky ones are, and what is
// taken for the balancer is the process that has started the workers. Where there is
// a reload, it replaces them.
func TestNodePeers(t *testing.T) {
	notShort(t)
	for _, p := range nodePeers {
		need(t, p)
	}
	node, err := writeNode(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := installModules(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	for _, p := range nodePeers {
		t.Run(p.name, func(t *testing.T) {
			s := nodeStage(t, p, node)
			for _, pid := range s.workerPIDs {
				if parent := parentOf(t, pid); parent != s.balancerPIDs[0] {
					t.Errorf("worker %d is the child of %d, and the balancer %d", pid, parent, s.balancerPIDs[0])
				}
			}
			figures, err := shortConnections(t.Context(), s)
			if err != nil || figures[failures] != 0 || figures[rate] == 0 || figures[workerCPU] == 0 {
				t.Errorf("figures %v, error %v, failure %v", figures, err, s.failure)
			}
			if balances := p.name != "node-cluster-none" && p.name != "handfast-node-kernel"; balances && figures[balancerCPU] == 0 {
				t.Errorf("balancing costs nothing: %v", figures)
			}
			if !strings.HasPrefix(p.name, "node-cluster") {
				wantSticky(t, s)
			}
			if p.reload != nil {
				if _, err := s.reloadWorkers(); err != nil {
					t.Errorf("reload: %v", err)
				}
			}
		})
	}
}

// wantSticky fails the test unless clients stay with their worker, and both workers have some.
func wantSticky(t *testing.T, s *stage) {
	count := map[int]int{}
	for client := range 20 {
		first, err := s.ask(t.Context(), client, client)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if pid, err := s.ask(t.Context(), client, client); pid != first || err != nil {
				t.Errorf("client %d: worker %d, error %v; before it was %d", client, pid, err, first)
			}
		}
		count[first]++
	}
	if len(count) != 2 {
		t.Errorf("clients by worker: %v, want both to have some", count)
	}
}

// nodeStage opens a peer's stage with Node workers of a directory. It is closed when the test ends.
func nodeStage(t *testing.T, p peer, node string) *stage {
	t.Helper()
	s := stageFor(t, p)
	s.node = node
	t.Cleanup(s.close)
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	return s
}

func parentOf(t *testing.T, pid int) (parent int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "PPid: %d", &parent)
	}
	return parent
}

// Without its modules a peer is left out, and the others are measured.
func TestNoModules(t *testing.T) {
	bin := t.TempDir()
	for name, script := range map[string]string{"npm": "#!/bin/sh\necho no registry; exit 1\n", "node": "#!/bin/sh\nexit 1\n"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	b := &runner{settings: settings{peers: nodePeers}, node: t.TempDir()}
	b.leaveOutMissing()
	b.fetch(t.Context())
	want := []string{"node-cluster", "node-cluster-none", "handfast-node", "handfast-node-kernel"}
	if left := names(b.peers); !slices.Equal(left, want) || !slices.Equal(names(b.report.peers), want) {
		t.Errorf("peers %v and %v are left, want %v", left, names(b.report.peers), want)
	}
	if notes := strings.Join(b.report.notes, "\n"); !strings.Contains(notes, "no registry") {
		t.Errorf("notes: %q", notes)
	}
}

// A lock file that names a host would install from there only.
func TestLockFile(t *testing.T) {
	lock, err := nodeFiles.ReadFile("node/package-lock.json")
	if err != nil || bytes.Contains(lock, []byte("resolved")) || bytes.Contains(lock, []byte("://")) {
		t.Errorf("error %v, or an address in\n%s", err, lock)
	}
	if about := aboutModules("sticky-listen", "recluster")(); !strings.HasPrefix(about, "sticky-listen 3.3.0, recluster 1.0.0, Node ") {
		t.Errorf("about: %q", about)
	}
}

// The work "node-pooled": each peer serves requests that come mixed, and none by another worker than its client's.
func TestNodePooledPeers(t *testing.T) {
	notShort(t)
	for _, p := range nodePooledPeers {
		need(t, p)
	}
	node, err := writeNode(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range nodePooledPeers {
		t.Run(p.name, func(t *testing.T) {
			s := nodeStage(t, p, node)
			wantForwarded(t, s)
			figures, err := pooledRequests(t.Context(), s)
			if err != nil || figures[failures] != 0 || figures[misplaced] != 0 || figures[requestRate] == 0 || figures[balancerRequestCPU] == 0 || figures[workerRequestCPU] == 0 {
				t.Errorf("figures %v, error %v, failure %v", figures, err, s.failure)
			}
		})
	}
}
