package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
)

// TestSameStop: what comes within a second of the first is the same wish, however often; a terminal that is closed never stops at once.
// Row A12.
func TestSameStop(t *testing.T) {
	began := time.Now()
	for _, tt := range []struct {
		name  string
		first os.Signal
		sig   os.Signal
		after time.Duration
		want  stopWish
	}{
		{"timeout(1) on a busy machine", unix.SIGTERM, unix.SIGTERM, 900 * time.Millisecond, stopSame},
		{"a terminal and a wrapper", unix.SIGINT, unix.SIGTERM, 10 * time.Millisecond, stopSame},
		{"impatience", unix.SIGTERM, unix.SIGTERM, time.Second, stopAtOnce},
		{"Ctrl-C again", unix.SIGINT, unix.SIGINT, 2 * time.Second, stopAtOnce},
		{"a closed terminal", unix.SIGHUP, unix.SIGHUP, time.Minute, stopSame},
		{"a closed terminal, and then impatience", unix.SIGHUP, unix.SIGTERM, time.Minute, stopAtOnce},
	} {
		var s stops
		if s.hear(tt.first, began) != stopBegin || s.hear(tt.first, began.Add(time.Millisecond)) != stopSame {
			t.Errorf("%s: the first one, twice", tt.name)
		}
		if got := s.hear(tt.sig, began.Add(tt.after)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestSecondSignal: in a delay the second signal ends that, and the third one stops at once; each may come by two ways.
func TestSecondSignal(t *testing.T) {
	s, began := stops{delay: 10 * time.Second}, time.Now()
	for _, step := range []struct {
		sig   os.Signal
		after time.Duration
		want  stopWish
	}{
		{unix.SIGTERM, 0, stopBegin},
		{unix.SIGTERM, 900 * time.Millisecond, stopSame},
		{unix.SIGHUP, 4 * time.Second, stopSame},
		{unix.SIGTERM, 5 * time.Second, stopCut},
		{unix.SIGTERM, 5900 * time.Millisecond, stopSame},
		{unix.SIGTERM, 6 * time.Second, stopAtOnce},
	} {
		if got := s.hear(step.sig, began.Add(step.after)); got != step.want {
			t.Errorf("after %v: %v, want %v", step.after, got, step.want)
		}
	}
	for after, want := range map[time.Duration]stopWish{
		10900 * time.Millisecond: stopCut, // it meant to end the delay, which is over by itself since a moment ago
		11 * time.Second:         stopAtOnce,
	} {
		s := stops{delay: 10 * time.Second}
		s.hear(unix.SIGTERM, began)
		if got := s.hear(unix.SIGTERM, began.Add(after)); got != want {
			t.Errorf("the second one after %v: %v, want %v", after, got, want)
		}
	}
}

// TestStopDelay: who is told to stop says at once that it is not ready, and serves on until the delay is over, or a second signal comes. What an
// operator asks for meanwhile is refused.
func TestStopDelay(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 2, options{lean: true, flags: []string{"--stop-delay", "1h"}})
		b.tell("status", "--ready")
		b.signal(unix.SIGTERM)
		b.await("stopping")
		if text := b.begin("status", "--ready").ends(exitFailure); !strings.Contains(text, "stopping") {
			t.Errorf("status --ready: %s", text)
		}
		for _, command := range [][]string{{"reload"}, {"scale", "3"}, {"drain", "0"}, {"upgrade"}} {
			if text := b.begin(command[0], command[1:]...).ends(exitFailure); !strings.Contains(text, "stop") {
				t.Errorf("%v: %s", command, text)
			}
		}
		kill(t, b.worker(0)) // whose successor is started nevertheless
		for slot := range 2 {
			b.mustGet(sourceIn(slot, 2, 0), "/")
		}
		slow, err := b.dial(source(1))
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		if err := request(slow, "/sleep/1s"); err != nil {
			t.Fatal(err)
		}
		if !eventually(func() bool {
			b.signal(unix.SIGTERM)
			return len(b.log("accepting no more, by a second signal")) > 0
		}) {
			t.Error("the second signal has not ended the delay")
		}
		if a, err := response(slow); err != nil || a.status != 200 {
			t.Errorf("what was accepted in the delay: %+v, %v", a, err)
		}
		if status := b.exit(); status != exitOK {
			t.Errorf("exit status %d", status)
		}
	})
}

// TestStopDelayEnds: by itself.
func TestStopDelayEnds(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{lean: true, flags: []string{"--stop-delay", "300ms"}})
	began := time.Now()
	b.signal(unix.SIGTERM)
	if status := b.exit(); status != exitOK || time.Since(began) < 300*time.Millisecond {
		t.Errorf("exit status %d after %v", status, time.Since(began))
	}
}

// TestStopByTimeout: timeout(1) sends SIGTERM to the process and to its group; nobody who is being served is cut off. Row A12.
func TestStopByTimeout(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{change: func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }})
	conn, err := b.dial(source(1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := request(conn, "/sleep/1s"); err != nil {
		t.Fatal(err)
	}
	b.awaitStatus("that the worker has it", func(s *master.Status) bool { return *s.Totals.HandedOff == 1 })
	b.signal(unix.SIGTERM)
	b.await("stopping") // so that the first one is heard before the second is sent
	unix.Kill(-b.cmd.Process.Pid, unix.SIGTERM)
	if a, err := response(conn); err != nil || a.status != 200 {
		t.Errorf("%+v, %v", a, err)
	}
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
}

// TestTerminalCloses: with a terminal as standard input SIGHUP stops, however often it comes: a shell sends it, and the kernel. Without one it
// upgrades, which TestUpgrade tries. Row C13.
func TestTerminalCloses(t *testing.T) {
	t.Parallel()
	_, theirs := openTerminal(t)
	b := start(t, 1, options{change: func(cmd *exec.Cmd) { cmd.Stdin = theirs }})
	b.signal(unix.SIGHUP)
	b.signal(unix.SIGHUP)
	b.await("stopping")
	b.signal(unix.SIGHUP)
	if status := b.exit(); status != exitOK {
		t.Errorf("exit status %d", status)
	}
	if len(b.log("trying the new program")) != 0 {
		t.Error("it was upgraded")
	}
	for _, l := range b.log("the terminal is closed (SIGHUP); to upgrade where standard input is a terminal say handfast upgrade") {
		if !strings.Contains(l.Level, "info") {
			t.Error(l)
		}
	}
}

// TestSummary: by the kernel's route nobody knows how many connections there were, and no figure says otherwise. Row C12.
func TestSummary(t *testing.T) {
	t.Parallel()
	byRoutes(t, func(t *testing.T, route string) {
		b := start(t, 1, options{lean: true})
		b.mustGet(source(1), "/")
		text := b.stopped().text
		if has := strings.Contains(text, `"accepted":1`) && strings.Contains(text, `"handed_off":1`); has != (route == "master") || strings.Contains(text, `"accepted":0`) {
			t.Errorf("route %s: %s", route, text)
		}
	})
}
