package fdtest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// NoLeaks fails the test if in the end, after all cleanups that are registered later, it has left descriptors open or
// goroutines running, or has closed descriptors that were not its own. Call it first, and in no parallel test.
func NoLeaks(t testing.TB) {
	t.Helper()
	noLeaks(t, Patience)
}

func noLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	closeGarbage()
	files, running := OpenFiles(), goroutines()
	t.Cleanup(func() {
		t.Helper()
		defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes files that nobody closed
		var opened, closed, started []string
		if !pollFor(patience, func() bool {
			now := OpenFiles()
			opened, closed, started = missing(now, files), missing(files, now), newcomers(running)
			return len(opened)+len(closed)+len(started) == 0
		}) {
			t.Errorf("files left open: %q\nfiles closed that are others': %q\ngoroutines left running, of %d: %q\n%s",
				opened, closed, len(running), started, Stacks())
		}
	})
}

// closeGarbage has the files closed that an earlier test has left to the garbage collector, which would close them
// during this one. The runtime runs what it has to do for garbage in several goroutines, in no order: with the second and third
// collection that of the first one is behind it.
func closeGarbage() {
	for range 3 {
		closed := make(chan struct{})
		runtime.AddCleanup(new([64]byte), func(closed chan struct{}) { close(closed) }, closed)
		runtime.GC()
		select {
		case <-closed:
		case <-time.After(time.Second):
		}
	}
}

// missing names what is in one answer of OpenFiles and not in the other.
func missing(from, in map[int]string) (names []string) {
	for number, name := range from {
		if in[number] != name {
			names = append(names, fmt.Sprint(number, " ", name))
		}
	}
	slices.Sort(names)
	return names
}

// newcomers returns where the goroutines were started that are not among those that ran before.
func newcomers(before map[int]string) (origins []string) {
	for number, origin := range goroutines() {
		// The number tells: no origin is known of one that is running just then.
		if _, ran := before[number]; !ran {
			origins = append(origins, origin)
		}
	}
	return origins
}

// goroutines returns where each goroutine of this process was started, by its number.
func goroutines() map[int]string {
	all := map[int]string{}
	for stack := range strings.SplitSeq(Stacks(), "\n\n") {
		var number int
		fmt.Sscanf(stack, "goroutine %d ", &number)
		if strings.Contains(stack, "os/signal.loop()") { // it starts once and stays
			continue
		}
		_, origin, _ := strings.Cut(stack, "\ncreated by ")
		all[number] = origin
	}
	return all
}

// OpenFiles names the open descriptors of this process.
func OpenFiles() map[int]string {
	openPoller()
	return OpenFilesOf(os.Getpid())
}

// OpenFilesOf names the open descriptors of a process as /proc does. There are none if it has ended.
func OpenFilesOf(pid int) map[int]string {
	folder := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, _ := os.ReadDir(folder)
	files := make(map[int]string, len(entries))
	for _, entry := range entries {
		fd, _ := strconv.Atoi(entry.Name())
		if name, err := os.Readlink(folder + entry.Name()); err == nil { // else it was closed meanwhile, as ours of folder
			files[fd] = name
		}
	}
	return files
}

// openPoller makes Go's poller open its descriptors, which it keeps, and does with the first socket.
var openPoller = sync.OnceFunc(func() {
	if ln, err := net.Listen("tcp", loopback); err == nil {
		ln.Close()
	}
})
