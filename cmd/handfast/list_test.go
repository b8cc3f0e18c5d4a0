package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
)

// TestList: each handfast that runs has a line, for programs an object, and what a killed one has left is told from them.
func TestList(t *testing.T) {
	dir := inRuntimeDirectory(t)
	if text := begin(t, "list").ends(exitOK); text != "no handfast answers here\n" {
		t.Error(text)
	}
	if text := begin(t, "list", "--json").ends(exitOK); text != "[]\n" {
		t.Error(text)
	}
	shop := start(t, 2, options{noAdmin: true, flags: []string{"--name", "shop"}})
	killed := start(t, 1, options{noAdmin: true, flags: []string{"--name", "killed"}})
	killed.signal(unix.SIGKILL)
	<-killed.exited

	lines := strings.Split(begin(t, "list").ends(exitOK), "\n")
	want := fmt.Sprintf("shop %d ready 2/2", shop.cmd.Process.Pid)
	if len(lines) != 4 || !strings.HasPrefix(strings.Join(strings.Fields(lines[1]), " "), want) || !strings.Contains(lines[1], shop.addr) || !strings.HasSuffix(lines[1], dir+"/shop.sock") {
		t.Errorf("%q, want %s", lines, want)
	}
	if lines[2] != "nobody listens any more at "+dir+"/killed.sock" {
		t.Errorf("%q", lines[2])
	}
	var found []admin.Instance
	if err := json.Unmarshal([]byte(begin(t, "list", "--json").ends(exitOK)), &found); err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || !found[0].Left || found[1].Name != "shop" || found[1].Status == nil || found[1].Status.PID != shop.cmd.Process.Pid {
		t.Errorf("%+v", found)
	}
	if text := begin(t, "list", "shop").ends(exitUsage); !strings.Contains(text, "no arguments") {
		t.Error(text)
	}
}

// TestListText: other users are named if there are any, who does not answer is below the table, and of what was left behind not all is.
func TestListText(t *testing.T) {
	now := time.Now()
	answers := &master.Status{PID: 7, Started: now.Add(-time.Minute), Now: now, Version: "v1\x1b[m", Addresses: []string{":80", ":443"}, Slots: []master.SlotStatus{
		{InUse: true, Worker: &master.WorkerStatus{}}, {InUse: true, State: "starting"},
	}}
	found := []admin.Instance{{Name: "web", Admin: "/run/web.sock", PID: 8, UID: new(1234567), Status: answers}, {Name: "hung", Admin: "/run/hung.sock", PID: 9, UID: new(1), Error: "admin: so it is"}}
	for i := range 5 {
		found = append(found, admin.Instance{Name: "left", Admin: fmt.Sprintf("/run/%d.sock", i), Left: true})
	}
	const want = `NAME  USER     PID  STATE      WORKERS  UP    VERSION  LISTEN    ADMIN
web   1234567  8    not ready  1/2      1m0s  v1?[m    :80 :443  /run/web.sock
hung, pid 9: so it is (/run/hung.sock)
nobody listens any more at /run/0.sock, /run/1.sock, /run/2.sock and 2 more
`
	if got := listText(found, 0); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := listText(found[:1], 1234567); strings.Contains(got, "USER") {
		t.Errorf("of one user:\n%s", got)
	}
	if silent := silentOnes(found); len(silent) != 1 || silent[0].Name != "hung" {
		t.Errorf("%+v", silent)
	}
}
