package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

// TestHostileDescriptors: a worker that sends the master connections whose last close waits for 6,000 s
// holds up nobody: clients of others are served, the program is replaced, and the master stops.
//
// Row A5: after the upgrade nobody was accepted, and SIGTERM did nothing.
func TestHostileDescriptors(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"native", "node"} {
		t.Run(link, func(t *testing.T) {
			b := start(t, 2, options{
				lean: true, notReady: true, worker: []string{"hostile"},
				flags: []string{"--worker-link", link, "--max-retries", "0", "--ready-timeout", "30s", "--stop-timeout", "100ms", "--kill-timeout", "100ms"},
			})
			b.hears("hostile", 1)
			b.upgrades(1)
			if a, err := b.get(sourceIn(1, 2, 0), "/"); err != nil {
				t.Errorf("%+v, %v", a, err)
			}
			if link == "native" {
				b.mustGet(sourceIn(0, 2, 0), "/")
			}
			b.signal(unix.SIGTERM)
			b.exit()
		})
	}
}

// TestHostileHandBack: a worker that hands back what it was not handed loses its own link, and is replaced. Connections of other
// slots go on, and the master keeps none of what it was sent.
func TestHostileHandBack(t *testing.T) {
	t.Parallel()
	const ofNobody = "what was handed back is no connection of ours"
	want := map[int]string{ // of whose worker's end the log says what
		1: ofNobody, 2: ofNobody, 3: ofNobody, 4: ofNobody,
		5: "more connections are handed back than were handed off",
		6: "bytes of details",
	}
	slots := 1 + len(want) // the worker of slot 0 is good
	b := start(t, slots, options{
		worker: []string{"returns", t.TempDir()},
		flags:  []string{"--drain-timeout", "500ms", "--kill-timeout", "100ms", "--ready-timeout", "30s"},
	})
	good := b.socketFor(sourceIn(0, slots, 0))
	files := b.files()
	conns := map[int]net.Conn{}
	for slot := range want {
		conns[slot] = b.send(sourceIn(slot, slots, 0), "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
		defer conns[slot].Close()
	}
	for _, left := range b.awaitCount("worker takes no more connections", len(want)) {
		var of struct{ Slot int }
		if err := json.Unmarshal([]byte(left.text), &of); err != nil || want[of.Slot] == "" || !strings.Contains(left.text, want[of.Slot]) {
			t.Errorf("%v, %s, want %v", err, left.text, want)
		}
		delete(want, of.Slot)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(conns[5]), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the connection that was handed back too often: %+v, %v", resp, err)
	}
	b.awaitCount("worker ready", slots+slots-1)
	b.awaitCount("worker exited", slots-1)
	for slot := range slots {
		if a := b.mustGet(sourceIn(slot, slots, 0), "/"); a.slot != slot {
			t.Errorf("slot %d: %+v", slot, a)
		}
	}
	if err := exchange(t.Context(), good, "still there"); err != nil {
		t.Errorf("a connection of slot 0: %v", err)
	}
	if s := b.status(); s.Slots[0].Restarts != 0 || s.Totals.Refused != 0 {
		t.Errorf("%d restarts of slot 0, %d refused", s.Slots[0].Restarts, s.Totals.Refused)
	}
	if !eventually(func() bool { return b.files() <= files }) {
		t.Errorf("%d files are open, at the start %d", b.files(), files)
	}
}

// TestInFlight: a worker of an unprivileged master that takes nothing fills what this user may have in flight. The
// clients of others are refused for that, by name, and not for a mailbox that is full.
//
// Row A11: the reason was "mailbox full", of a worker that kept up.
func TestInFlight(t *testing.T) {
	t.Parallel()
	asRoot(t)
	const user, limit = nobody + 11, 256 // nobody else's, since the limit is the user's
	b := start(t, 2, options{
		lean:  true,
		flags: []string{"--max-retries", "2", "--retry-delay", "10ms"},
		change: func(cmd *exec.Cmd) {
			cmd.Path = everybodys(t, cmd.Path)
			last := len(cmd.Args) - 2 // before "http"
			cmd.Args[last] = everybodys(t, cmd.Args[last])
			admin := cmd.Args[slices.Index(cmd.Args, "--admin")+1]
			if err := os.Chown(filepath.Dir(admin), user, user); err != nil {
				t.Fatal(err)
			}
			cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh", cmd.Path}, cmd.Args[1:]...)
			cmd.Path = "/bin/sh"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		},
	})
	stalled, other := sourceIn(0, 2, 0), sourceIn(1, 2, 0)
	b.mustGet(other, "/")
	freeze(t, b.worker(0))
	b.open(stalled, limit+1)
	if !eventually(func() bool {
		a, err := b.get(other, "/")
		return err == nil && a.status == http.StatusBadGateway
	}) {
		t.Fatal("the others are served")
	}
	if refused := b.await("connection refused"); !strings.Contains(refused.text, "in flight") || !strings.Contains(refused.text, "ulimit -n") {
		t.Errorf("the log says %s", refused.text)
	}
	if s := b.status(); *s.Slots[1].MailboxFull != 0 {
		t.Errorf("slot 1's mailbox was full %d times", *s.Slots[1].MailboxFull)
	}
	unix.Kill(b.worker(0), unix.SIGKILL) // what it has not taken is its successor's
	if !eventually(func() bool {
		a, err := b.get(other, "/")
		return err == nil && a.status == http.StatusOK
	}) {
		t.Error("the others are not served when there is room")
	}
}

// TestWorkerOfAnotherUser: a worker that runs as somebody else than root's master can do nothing to that, nor with its
// rights, however it gets its connections. One of the same user can, which shows that it tries in earnest.
func TestWorkerOfAnotherUser(t *testing.T) {
	t.Parallel()
	asRoot(t)
	all := []string{"signals", "environment", "memory", "descriptors", "a copy of one", "admin socket", "files", "low port"}
	for _, v := range []struct {
		route, link string
		user        int
		could       []string
	}{
		{"master", "native", nobody, nil},
		{"kernel", "native", nobody, nil},
		{"kernel", "any", nobody, nil},
		{"kernel", "native", 0, append(slices.Clone(all), "others' clients")},
	} {
		t.Run(fmt.Sprintf("%s/%s/user %d", v.route, v.link, v.user), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			address := trial.FreeAddress(t)
			var could []string
			if could = v.could; could == nil && mayBindLow(t) {
				could = []string{"low port"}
			}
			b := start(t, 1, options{
				variant: variant{route: v.route},
				lean:    true, worker: []string{"burgles"},
				flags: []string{"--user", fmt.Sprint(v.user), "--worker-link", v.link, "--listen", address},
				change: func(cmd *exec.Cmd) {
					last := len(cmd.Args) - 2 // before "burgles"
					cmd.Args[last] = everybodys(t, cmd.Args[last])
					admin := cmd.Args[slices.Index(cmd.Args, "--admin")+1]
					os.Chmod(filepath.Dir(admin), 0o755)
					os.Chmod(dir, 0o700)
					cmd.Env = append(cmd.Env, "HANDFAST_TEST_BURGLE="+dir, "HANDFAST_TEST_ADMIN="+admin)
					if v.link == "any" { // what it binds there is its slot's
						cmd.Env = append(cmd.Env, "HANDFAST_TEST_LISTEN="+address)
					} else {
						cmd.Env = append(cmd.Env, "HANDFAST_TEST_AT="+address)
					}
				},
			})
			b.hears("burgles no more", 1)
			var got []string
			for _, line := range b.said("burgled: ") {
				got = append(got, strings.TrimPrefix(line, "burgled: "))
			}
			if !slices.Equal(got, could) {
				t.Errorf("it could reach %q, want %q", got, could)
			}
			b.mustGet(source(0), "/")
		})
	}
}
