package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/output"
)

// Control sequences of terminals (ECMA-48, and xterm's for the second screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[2J" // another screen, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K" // from here to its end
	clearRest   = "\x1b[J" // of the screen
	inverse     = "\x1b[7m"
	upright     = "\x1b[m"
)

// watch shows the status again and again until ctx ends: in place on a terminal, else one after the other.
func watch(ctx context.Context, w io.Writer, interval time.Duration, ask func(context.Context) (master.Status, error)) error {
	file, ok := w.(*os.File)
	if ok && output.IsTerminal(file) {
		return watchOn(ctx, file, os.Stdin, interval, ask)
	}
	for between := ""; ; between = "\n" {
		status, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // seen enough
		case err != nil:
			return err
		}
		if _, err := io.WriteString(w, between+statusText(&status)); err != nil {
			return err
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return nil
		}
	}
}

// watchOn shows it on a terminal. A goroutine reads its keys, one asks the master. The terminal is as it was
// when this returns, and while the program is stopped (SIGTSTP).
func watchOn(ctx context.Context, terminal, keyboard *os.File, interval time.Duration, ask func(context.Context) (master.Status, error)) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGTSTP, unix.SIGCONT)
	defer signal.Stop(signals)
	enter, leave := takeTerminal(terminal, keyboard)
	enter()
	defer leave()

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	keys := make(chan string)
	running.Go(func() { readKeys(ctx, keyboard, keys) })
	looks := make(chan looked)
	running.Go(func() { askAgain(ctx, interval, ask, looks) })
	var v view
	for {
		select {
		case look := <-looks:
			if look.err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return look.err
			}
			v.lines = func(width int) []string {
				return strings.Split(strings.TrimRight(statusWithin(&look.status, width), "\n"), "\n")
			}
		case key := <-keys:
			if key == "q" {
				return nil
			}
			v.press(key)
		case sig := <-signals:
			if ends := obey(sig, enter, leave); ends {
				return nil
			}
			if sig == unix.SIGTSTP {
				continue
			}
		case <-ctx.Done():
			return nil
		}
		if v.lines == nil {
			continue
		}
		v.width, v.height = sizeOf(terminal)
		if _, err := io.WriteString(terminal, v.frame()); err != nil { // in one write, so that nothing flickers
			return err
		}
	}
}

// looked is what came of asking for the status.
type looked struct {
	status master.Status
	err    error
}

// askAgain asks for the status again and again until ctx ends.
func askAgain(ctx context.Context, interval time.Duration, ask func(context.Context) (master.Status, error), looks chan<- looked) {
	for {
		s, err := ask(ctx)
		select {
		case looks <- looked{s, err}:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return
		}
	}
}

// obey does what a signal is for, with the terminal as it was while the window is stopped or ends, and
// tells whether it ends.
func obey(sig os.Signal, enter, leave func()) (ends bool) {
	switch sig {
	case unix.SIGWINCH:
	case unix.SIGINT:
		return true
	case unix.SIGTSTP:
		leave()
		unix.Kill(os.Getpid(), unix.SIGSTOP)
	case unix.SIGCONT:
		enter()
	default: // end by it: the sender expects that
		leave()
		signal.Reset(sig)
		// A signal to the process may be another thread's, which gets it too late (man 2 tgkill).
		runtime.LockOSThread()
		unix.Tgkill(os.Getpid(), unix.Gettid(), sig.(unix.Signal))
		return true
	}
	return false
}

// takeTerminal returns what makes a terminal ready, and what leaves it as it was. Both may be called again.
func takeTerminal(terminal, keyboard *os.File) (enter, leave func()) {
	var before *unix.Termios
	taken := false
	enter = func() {
		if taken {
			return
		}
		taken = true
		io.WriteString(terminal, enterScreen)
		if attributes, err := unix.IoctlGetTermios(int(keyboard.Fd()), unix.TCGETS); err == nil {
			before = attributes
			keys := *attributes
			keys.Lflag &^= unix.ICANON | unix.ECHO // Ctrl-C and Ctrl-Z go on sending signals
			keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
			unix.IoctlSetTermios(int(keyboard.Fd()), unix.TCSETS, &keys)
		}
	}
	leave = func() {
		if !taken {
			return
		}
		taken = false
		if before != nil {
			unix.IoctlSetTermios(int(keyboard.Fd()), unix.TCSETS, before)
		}
		io.WriteString(terminal, leaveScreen)
	}
	return enter, leave
}

// keyNames are those of sequences that terminals send.
var keyNames = map[string]string{
	"\x1b[A": "k", "\x1bOA": "k", "\x1b[B": "j", "\x1bOB": "j", "\x1b[C": "l", "\x1bOC": "l", "\x1b[D": "h", "\x1bOD": "h",
	"\x1b[5~": "b", "\x1b[6~": " ", "\x1b[H": "g", "\x1b[1~": "g", "\x1b[F": "G", "\x1b[4~": "G",
}

// oneKey is a letter, or what a terminal sends for another key.
var oneKey = regexp.MustCompile("\x1b(?:\\[[0-9;]*[A-Za-z~]|O[A-Z])|[^\x1b]")

// readKeys tells of keys until ctx ends, or nobody can press any.
func readKeys(ctx context.Context, keyboard *os.File, keys chan<- string) {
	const look = 100 // milliseconds, for the end
	fd := int(keyboard.Fd())
	buffer := make([]byte, 64)
	for ctx.Err() == nil {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, look)
		if n == 0 || err == unix.EINTR {
			continue
		}
		n, err = unix.Read(fd, buffer)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for _, key := range oneKey.FindAllString(string(buffer[:n]), -1) {
			if name := keyNames[key]; name != "" {
				key = name
			}
			select {
			case keys <- key:
			case <-ctx.Done():
				return
			}
		}
	}
}

// sizeOf returns how many columns and rows a terminal has.
func sizeOf(terminal *os.File) (width, height int) {
	size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// view is the part of a status that a window shows.
type view struct {
	lines         func(width int) []string // of the status, of at most so many letters where that is possible
	width, height int
	row, column   int // of the table, in the corner of the window
}

const columnStep = 8

func (v *view) press(key string) {
	switch key {
	case "j", "\n", "\r":
		v.row++
	case "k":
		v.row--
	case " ":
		v.row += max(v.height/2, 1)
	case "b":
		v.row -= max(v.height/2, 1)
	case "g":
		v.row = 0
	case "G":
		v.row = 1 << 30 // frame knows
	case "l":
		v.column += columnStep
	case "h":
		v.column -= columnStep
	}
}

// frame is what to write so that the window shows it: the head and the titles, as many rows as there is
// room for, and a last line of what else there is.
func (v *view) frame() string {
	lines := v.lines(v.width)
	at := tableAt(lines)
	wide := widest(lines[at:])
	v.column = max(min(v.column, wide-v.width), 0)
	var shown []string
	for _, line := range lines[:at] {
		shown = append(shown, cut(line, 0, v.width))
	}
	title, rows := lines[at], lines[at+1:]
	shown = append(shown, cut(title, v.column, v.width))
	shown = shown[:min(len(shown), max(v.height-2, 0))] // a row at least
	room := max(v.height-1-len(shown), 0)
	v.row = max(min(v.row, len(rows)-room), 0)
	last := min(v.row+room, len(rows))
	for _, line := range rows[v.row:last] {
		shown = append(shown, cut(line, v.column, v.width))
	}
	help := "q leaves"
	if room < len(rows) {
		help = fmt.Sprintf("%d to %d of %d, j k scroll; ", v.row+1, last, len(rows)) + help
	}
	if wide > v.width {
		help = "h l move; " + help
	}
	shown = append(shown, inverse+cut(help, 0, v.width)+upright)
	// No line feed after the last one, which would scroll.
	return home + strings.Join(shown, clearLine+"\r\n") + clearLine + clearRest
}

// tableAt is where the titles of the table are: behind the first empty line.
func tableAt(lines []string) int {
	return min(slices.Index(lines, "")+1, len(lines)-1)
}

// widest is how many letters the longest line has.
func widest(lines []string) (n int) {
	for _, line := range lines {
		n = max(n, len([]rune(line)))
	}
	return n
}

// cut returns width letters of a line from column on, marked where there are more.
func cut(line string, column, width int) string {
	letters := []rune(line)
	letters = letters[min(column, len(letters)):]
	if len(letters) > width && width > 0 {
		letters = append(slices.Clone(letters[:width-1]), '…')
	}
	return string(letters[:min(len(letters), width)])
}

// printable is text without what a terminal would take for a command. A worker may have chosen it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}
