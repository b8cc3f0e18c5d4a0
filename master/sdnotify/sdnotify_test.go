package sdnotify

import (
	"bufio"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

// TestParse: assignments as man 3 sd_notify has them.
func TestParse(t *testing.T) {
	for text, want := range map[string]message{
		"READY=1":                      {ready: true},
		"READY=1\n":                    {ready: true},
		"STATUS=x\nREADY=1\nMAINPID=1": {ready: true, status: new("x")},
		"READY=0\nREADY\n=1\nready=1":  {},
		"STOPPING=1":                   {stopping: true},
		"WATCHDOG=1":                   {ping: true},
		"WATCHDOG=trigger":             {trigger: true},
		"WATCHDOG=11":                  {},
		"STATUS=":                      {status: new("")},
		"STATUS=a=b \x1b[31m\tc\xff":   {status: new("a=b  [31m c�")},
		"":                             {},
	} {
		got := parse([]byte(text))
		if got.ready != want.ready || got.stopping != want.stopping || got.ping != want.ping || got.trigger != want.trigger ||
			(got.status == nil) != (want.status == nil) || want.status != nil && *got.status != *want.status {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// FuzzParse: whatever a worker sends, what is shown of it is a line of text, and bounded.
func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=serving \x00\xe2\x80\xa8 WATCHDOG=1\n"))
	f.Add([]byte("STATUS=" + strings.Repeat("ä", 200)))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := parse(text)
		if m.status != nil && (len(*m.status) > maxStatus || !utf8.ValidString(*m.status) ||
			strings.ContainsFunc(*m.status, func(r rune) bool { return !unicode.IsPrint(r) })) {
			t.Errorf("%q is shown", *m.status)
		}
		if m.ready && !strings.Contains(string(text), "READY=1") {
			t.Errorf("%q is ready", text)
		}
	})
}

// sender is a process that leads a group, and whose child sends what it is told, with a descriptor that comes with it if it is told so.
const sender = `
import array, os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to = '\0' + sys.argv[1][1:]
if os.fork() == 0:
    for line in sys.stdin:
        r, w = os.pipe()
        with_pipe = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))] if 'BARRIER' in line else []
        s.sendmsg([line.strip().replace(';', '\n').encode()], with_pipe, 0, to)
        os.close(w)
        if with_pipe:
            os.read(r, 1)
        print('sent', flush=True)
        os.close(r)
    os._exit(0)
os.wait()
`

// send starts the sender, and returns how to have it say something.
func send(t *testing.T, name string) (pid int, say func(string)) {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "-c", sender, name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL); cmd.Wait() })
	lines := bufio.NewScanner(out)
	return cmd.Process.Pid, func(text string) {
		t.Helper()
		if _, err := in.Write([]byte(text + "\n")); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatal("the sender has ended")
		}
	}
}

func nameOf(r *Receiver) string { return strings.TrimPrefix(r.Env()[0], "NOTIFY_SOCKET=") }

// TestReceiver: what a process of the worker's group says counts, and what others say does not. Who waits for a barrier is not held up.
func TestReceiver(t *testing.T) {
	fdtest.NoLeaks(t)
	r, err := Open(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if env := strings.Join(r.Env(), " "); !strings.HasSuffix(env, " WATCHDOG_USEC=10000000") {
		t.Error(env)
	}
	pid, say := send(t, nameOf(r))
	_, lies := send(t, nameOf(r))
	r.Started(pid)
	lies("READY=1;STOPPING=1;STATUS=I am another;WATCHDOG=trigger")
	say("STATUS=loading;WATCHDOG=1")
	say("BARRIER=1")
	if said := r.Said(); said.Status != "loading" || said.Pings != 1 || said.Trigger {
		t.Errorf("%+v", said)
	}
	select {
	case <-r.Ready():
		t.Error("another one says that it is ready")
	default:
	}
	say("READY=1")
	say("READY=1;STOPPING=1;STATUS=" + strings.Repeat("x", 3*maxMessage))
	say("BARRIER=1")
	fdtest.Closed(t, "ready", r.Ready())
	fdtest.Closed(t, "stopping", r.Stopping())
	if n := len(r.Said().Status); n != maxStatus {
		t.Errorf("%d bytes of status", n)
	}
}

// TestReceiverIsBounded: a worker that sends and sends waits, and not the master's processor.
func TestReceiverIsBounded(t *testing.T) {
	r, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, say := send(t, nameOf(r))
	r.Started(pid)
	began := time.Now()
	for range 3 * maxRate {
		say("WATCHDOG=1")
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("%d messages were read in %v", 3*maxRate, took)
	}
}

// TestUpgrade: another program goes on with the socket, and with what was said.
func TestUpgrade(t *testing.T) {
	fdtest.NoLeaks(t)
	r, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	pid, say := send(t, nameOf(r))
	r.Started(pid)
	say("STATUS=serving;WATCHDOG=1")
	say("BARRIER=1")
	state, b := r.save(reexec.NewBundle("now")), reexec.NewBundle("now")
	if state.FD, err = unix.FcntlInt(uintptr(state.FD), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	b.Keep(state.FD)
	text, err := reexec.Seal(part, state)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	notices, err := Restore(b)(pid, text)
	if err != nil {
		t.Fatal(err)
	}
	defer notices.Close()
	notices.Resume()
	say("WATCHDOG=1")
	say("BARRIER=1")
	if said := notices.Said(); said.Status != "serving" || said.Pings != 2 {
		t.Errorf("%+v", said)
	}
	fdtest.Closed(t, "ready", notices.Ready())
}

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{FD: 9, Name: "handfast/ABC", Status: "serving", Pings: 7, Stopping: true})
}
