package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// window is a terminal in which a command runs.
type window struct {
	t     *testing.T
	ours  *os.File
	far   *os.File // kept open, so that its settings can be looked at
	cmd   *exec.Cmd
	ended chan struct{}

	mu   sync.Mutex
	text string // all that was written
}

// openWindow runs this program in a terminal of so many columns and rows.
func openWindow(t *testing.T, columns, rows int, args ...string) *window {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	far, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	self := itself(t)
	w := &window{t: t, ours: os.NewFile(uintptr(fd), "terminal"), far: far, cmd: exec.Command(self, args...), ended: make(chan struct{})}
	w.resize(columns, rows)
	w.cmd.Env = append(os.Environ(), testRole+"=1")
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = far, far, far
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { w.cmd.Wait(); close(w.ended) }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 64<<10)
		for {
			n, err := w.ours.Read(buffer)
			w.mu.Lock()
			w.text += string(buffer[:n])
			w.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		w.cmd.Process.Kill()
		<-w.ended
		far.Close() // the last one: reading ends
		<-read
		w.ours.Close()
	})
	return w
}

func (w *window) resize(columns, rows int) {
	size := &unix.Winsize{Col: uint16(columns), Row: uint16(rows)}
	if err := unix.IoctlSetWinsize(int(w.far.Fd()), unix.TIOCSWINSZ, size); err != nil {
		w.t.Fatal(err)
	}
}

var sequence = regexp.MustCompile("\x1b\\[[?0-9;]*[A-Za-z]")

// screen returns the lines of the last whole frame.
func (w *window) screen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	frames := strings.Split(w.text, home)
	for i := len(frames) - 1; i > 0; i-- {
		if frame, whole := strings.CutSuffix(strings.TrimSuffix(frames[i], leaveScreen), clearRest); whole {
			// The terminal adds a carriage return to each line feed.
			return strings.Split(strings.ReplaceAll(sequence.ReplaceAllString(frame, ""), "\r", ""), "\n")
		}
	}
	return nil
}

// shows waits for a frame that has all this, and wants it to fit.
func (w *window) shows(columns, rows int, texts ...string) {
	w.t.Helper()
	var lines []string
	if !eventually(func() bool {
		lines = w.screen()
		for _, text := range texts {
			if !strings.Contains(strings.Join(lines, "\n"), text) {
				return false
			}
		}
		for _, line := range lines {
			if len([]rune(line)) > columns {
				return false
			}
		}
		return len(lines) > 1 && len(lines) <= rows
	}) {
		w.t.Fatalf("no %q within %d by %d:\n%s", texts, columns, rows, strings.Join(lines, "\n"))
	}
}

// modes are the settings of the terminal.
func (w *window) modes() unix.Termios {
	attributes, err := unix.IoctlGetTermios(int(w.far.Fd()), unix.TCGETS)
	if err != nil {
		w.t.Fatal(err)
	}
	return *attributes
}

// leaves wants the command to end in this way, and the terminal to be as it was before.
func (w *window) leaves(before unix.Termios, signal syscall.Signal) {
	w.t.Helper()
	if !eventually(func() bool {
		select {
		case <-w.ended:
			return true
		default:
			return false
		}
	}) {
		w.t.Fatal("it goes on")
	}
	status := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if signal == 0 && w.cmd.ProcessState.ExitCode() != exitOK || signal != 0 && status.Signal() != signal {
		w.t.Errorf("it ended with %v, want signal %d", w.cmd.ProcessState, signal)
	}
	if now := w.modes(); now != before {
		w.t.Errorf("the terminal was\n%+v, is\n%+v", before, now)
	}
	if !eventually(func() bool { w.mu.Lock(); defer w.mu.Unlock(); return strings.HasSuffix(w.text, leaveScreen) }) {
		w.t.Errorf("the last that it wrote is %q", w.text[max(len(w.text)-100, 0):])
	}
}

// Row C10: TestWatchWindow: status --watch fits a window, also another one, scrolls, and leaves the terminal as it
// was, by a key and by signals.
func TestWatchWindow(t *testing.T) {
	t.Parallel()
	b := start(t, 32, options{})
	// Within 80 columns there are lines below the table once a worker is a minute old.
	w := openWindow(t, 100, 24, "status", "--watch", "--interval", "20ms", "--admin", b.admin)
	before := b.status().Name
	w.shows(100, 24, before, "SLOT", "1 to 18 of 32", "q leaves", "\n17 ")
	if modes := w.modes(); modes.Lflag&(unix.ECHO|unix.ICANON) != 0 {
		t.Error("keys are echoed")
	}
	w.ours.WriteString("j\x1b[B")
	w.shows(100, 24, "3 to 20 of 32", "SLOT", "\n19 ")
	w.ours.WriteString("G")
	w.shows(100, 24, "15 to 32 of 32", "\n31 ")
	w.ours.WriteString("kg")
	w.shows(100, 24, "1 to 18 of 32", "\n0 ")
	w.resize(60, 50)
	w.shows(60, 50, "\n31 ", "q leaves")
	w.resize(20, 4)
	w.shows(20, 4, "h l move; 1 to 1 of")
	w.ours.WriteString("q")
	<-w.ended

	for _, leave := range []struct {
		how    func(w *window)
		signal syscall.Signal
	}{
		{func(w *window) { w.ours.WriteString("q") }, 0},
		{func(w *window) { w.ours.WriteString("\x03") }, 0}, // Ctrl-C
		{func(w *window) { w.cmd.Process.Signal(unix.SIGTERM) }, unix.SIGTERM},
		{func(w *window) { w.cmd.Process.Signal(unix.SIGHUP) }, unix.SIGHUP},
	} {
		w := openWindow(t, 80, 24, "status", "--watch", "--admin", b.admin)
		before := w.modes()
		before.Lflag |= unix.ECHO | unix.ICANON // as every new terminal has
		w.shows(80, 24, "SLOT")
		leave.how(w)
		w.leaves(before, leave.signal)
	}
}

// TestFrame: what a window of any size gets is within it, and what a worker has made of its exit moves no cursor.
func TestFrame(t *testing.T) {
	lines := []string{"name, ready", "generation 1", "", "SLOT  STATE", "0     " + strings.Repeat("x", 30), "1     serving", "2     äöü"}
	for width := 1; width < 50; width++ {
		for height := 1; height < 12; height++ {
			v := view{lines: func(int) []string { return lines }, width: width, height: height}
			for _, key := range []string{"", "j", "G", "l", "l", "l", "l", "l", "g", "h", "k", " ", "b", "?"} {
				v.press(key)
				shown := strings.Split(sequence.ReplaceAllString(v.frame(), ""), "\r\n")
				if len(shown) > height {
					t.Fatalf("%d by %d: %d lines", width, height, len(shown))
				}
				for _, line := range shown {
					if len([]rune(line)) > width {
						t.Fatalf("%d by %d: %q", width, height, line)
					}
				}
			}
		}
	}
	if got := printable("a\x1b[2Jb\tä\u009b\n"); got != "a?[2Jb?ä?\n" {
		t.Errorf("%q", got)
	}
}
