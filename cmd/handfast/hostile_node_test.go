package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mayBindLow tells whether everybody may listen on port 81.
func mayBindLow(t *testing.T) bool {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	start := 0
	fmt.Sscan(string(text), &start)
	return start <= 81
}

// TestNodeListensAsItsUser: what a Node worker of another user asks root's master to listen on, it gets with its
// own rights: not in a directory that only root may write, nor on a privileged port, and where it may write it
// becomes the owner. In the end the master removes what it has made, there, and nothing where the worker has
// meanwhile put something else in its place; also after an upgrade.
//
// Row B1: the worker listened in root's directory and on port 81, and had root remove a file of root's.
func TestNodeListensAsItsUser(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for _, upgraded := range []bool{false, true} {
		t.Run(fmt.Sprintf("upgraded %v", upgraded), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "handfast")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			os.Chmod(dir, 0o755)
			own, roots := filepath.Join(dir, "own"), filepath.Join(dir, "root's")
			for at, owner := range map[string]int{own: nobody, filepath.Join(own, "a"): nobody, roots: 0} {
				if err := errors.Join(os.MkdirAll(at, 0o755), os.Chown(at, owner, owner)); err != nil {
					t.Fatal(err)
				}
			}
			victim := filepath.Join(roots, "victim")
			if err := os.WriteFile(victim, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			script := `
				const { DIR } = process.env;
				const tell = (what, s) => s.on('listening', () => say('listening', what)).on('error', (err) => say('error', what, err.code));
				server.listen(PORT, () => {
					tell('own', net.createServer()).listen(DIR + '/own/a/victim', () =>
						tell('stays', net.createServer()).listen(DIR + '/own/stays', () => {
							tell("root's", net.createServer()).listen(DIR + "/root's/socket");
							tell('low', net.createServer()).listen(81, '127.0.0.81');
							tell('low udp', dgram.createSocket('udp4')).bind(81, '127.0.0.81');
						}));
				});
			`
			b := startNode(t, 1, script, nodeOptions{
				lean:  true,
				flags: []string{"--user", fmt.Sprint(nobody)},
				env:   []string{"DIR=" + dir, "HOME=" + dir},
				change: func(cmd *exec.Cmd) {
					path := filepath.Join(dir, "server.js") // where the worker may read it
					text, err := os.ReadFile(cmd.Args[len(cmd.Args)-1])
					if err == nil {
						err = os.WriteFile(path, text, 0o644)
					}
					if err != nil {
						t.Fatal(err)
					}
					cmd.Args[len(cmd.Args)-1] = path
				},
			})
			b.hears("listening own", 1)
			b.hears("listening stays", 1)
			b.hears("error root's EACCES", 1)
			if !mayBindLow(t) {
				b.hears("error low EACCES", 1)
				b.hears("error low udp EACCES", 1)
			}
			for _, name := range []string{"own/a/victim", "own/stays"} {
				info, err := os.Lstat(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if stat := info.Sys().(*syscall.Stat_t); stat.Uid != nobody {
					t.Errorf("%s belongs to user %d", name, stat.Uid)
				}
			}
			if upgraded {
				b.upgrades(1)
			}
			// As the worker may.
			if err := errors.Join(os.Rename(filepath.Join(own, "a"), filepath.Join(own, "moved")), os.Symlink(roots, filepath.Join(own, "a"))); err != nil {
				t.Fatal(err)
			}
			if conn, err := net.Dial("unix", filepath.Join(own, "moved", "victim")); err != nil {
				t.Error(err)
			} else {
				conn.Close()
			}
			b.signal(unix.SIGTERM)
			b.exit()
			if _, err := os.Lstat(victim); err != nil {
				t.Errorf("root's file: %v", err)
			}
			for _, name := range []string{"moved/victim", "stays"} {
				if _, err := os.Lstat(filepath.Join(own, name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the socket %s stays: %v", name, err)
				}
			}
			if entries, _ := os.ReadDir(roots); len(entries) != 1 {
				t.Errorf("root's directory has %v", entries)
			}
			if errs := b.said("error"); slices.ContainsFunc(errs, func(s string) bool { return strings.Contains(s, "own") || strings.Contains(s, "stays") }) {
				t.Errorf("workers say %q", errs)
			}
		})
	}
}
