package foreigntest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/master/supervisor"
)

const (
	// Slots is how many slots a stage has.
	Slots = 3
	// Patience bounds what should happen soon; starting three servers on a busy machine is
	// the longest.
	Patience = 90 * time.Second
)

// Group opens a listener per slot on a port of 127.0.0.1, blocking as they are to be. The
// client 127.x.y.z has the slot z modulo Slots.
func Group(t testing.TB) ([]*os.File, int) {
	t.Helper()
	port := 0
	var files []*os.File
	for range Slots {
		fd := Socket(t, unix.AF_INET)
		fdtest.Check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		fdtest.Check(t, unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
		fdtest.Check(t, unix.Listen(fd, 1000))
		at, err := unix.Getsockname(fd)
		fdtest.Check(t, err)
		port = at.(*unix.SockaddrInet4).Port
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprint("slot ", len(files))))
		t.Cleanup(func() { files[0].Close(); files = files[1:] })
	}
	const networkHeader, source = -0x100000, 12 // SKF_NET_OFF
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 1<<32 + networkHeader + source, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xff},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: Slots},
		bpf.RetA{},
	})
	fdtest.Check(t, err)
	var filters []unix.SockFilter
	for _, i := range program {
		filters = append(filters, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	raw, err := files[0].SyscallConn()
	fdtest.Check(t, err)
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
	})
	fdtest.Check(t, err)
	return files, port
}

// Socket opens a TCP socket.
func Socket(t testing.TB, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fdtest.Check(t, err)
	return fd
}

// Stage is a supervisor with a server in each slot.
type Stage struct {
	*supervisor.Supervisor
	t      *testing.T
	port   int
	dir    string
	ask    func(st *Stage, client string, c net.Conn) (string, error)
	events chan supervisor.Event
	ended  chan error
}

// Begin starts a server in each slot, with links that configure makes, and waits until all are ready.
func Begin(t *testing.T, s *Server, port int, configure func(*supervisor.Config)) *Stage {
	t.Helper()
	st := &Stage{t: t, port: port, dir: Folder(t), ask: s.ask, events: make(chan supervisor.Event, 1000), ended: make(chan error, 1)}
	if st.ask == nil {
		st.ask = askHTTP
	}
	cfg := supervisor.DefaultConfig()
	cfg.Probation = 0
	cfg.Workers = Slots
	cfg.Command = s.command(t, st.dir, port)
	cfg.ReadyTimeout = Patience
	cfg.DrainTimeout = Patience
	cfg.Logger = Logger(t)
	cfg.OnEvent = func(e supervisor.Event) { st.events <- e }
	configure(&cfg)
	var err error
	st.Supervisor, err = supervisor.New(cfg)
	fdtest.Check(t, err)
	ctx, kill := context.WithCancel(context.Background())
	go func() { st.ended <- st.Run(ctx) }()
	t.Cleanup(func() {
		kill()
		<-st.ended
	})
	st.await(supervisor.WorkerReady, Slots)
	return st
}

// await waits for n events of a kind. A worker that exits before that fails the test.
func (st *Stage) await(kind supervisor.EventKind, n int) {
	st.t.Helper()
	deadline := time.After(Patience)
	for n > 0 {
		select {
		case e := <-st.events:
			switch {
			case e.Kind == kind:
				n--
			case e.Kind == supervisor.WorkerExited && kind == supervisor.WorkerReady, e.Kind == supervisor.WorkerLeft:
				st.t.Fatalf("worker of slot %d: %v, %v, %v", e.Slot, e.Kind, e.Exit, e.Err)
			}
		case <-deadline:
			st.t.Fatalf("%d more of %v: not within %v", n, kind, Patience)
		}
	}
}

// get asks the server as a client, and returns what it answers.
func (st *Stage) get(client string) (string, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}, Timeout: Patience}
	c, err := dialer.Dial("tcp", fmt.Sprint("127.0.0.1:", st.port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(Patience))
	return st.ask(st, client, c)
}

// want asks as a client and says what is wrong with the answer "SLOT GENERATION CLIENT".
func (st *Stage) want(client string, last byte) (generation string, err error) {
	answer, err := st.get(client)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(answer)
	if len(fields) != 3 || fields[0] != fmt.Sprint(last%Slots) || fields[2] != client {
		return "", fmt.Errorf("client %s of slot %d is answered %q", client, last%Slots, answer)
	}
	return fields[1], nil
}

// breath is what a client under load takes between two requests: servers are to start meanwhile.
const breath = 2 * time.Millisecond

// load has clients ask one after the other until stop, and reports when more fail than may.
func (st *Stage) load(n, mayFail int) (stop func() (generations map[string]int)) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	generations := map[string]int{}
	failures := 0
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				last := byte(1 + (i+round*n)%250)
				generation, err := st.want(fmt.Sprintf("127.9.%d.%d", i, last), last)
				mu.Lock()
				if err != nil {
					if failures++; failures > mayFail && failures < mayFail+5 {
						st.t.Errorf("under load: %v", err)
					}
				}
				generations[generation]++
				mu.Unlock()
				time.Sleep(breath)
			}
		})
	}
	stop = func() map[string]int {
		cancel()
		wg.Wait()
		return generations
	}
	st.t.Cleanup(func() { stop() }) // also when the test ends early
	return stop
}

// askHTTP makes one HTTP request. The answer is in a header or else in the body.
func askHTTP(_ *Stage, _ string, c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "GET /who HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if who := response.Header.Get("X-Who"); who != "" {
		return who, err
	}
	return string(body), err
}

// Folder makes a folder that also those can read that a server gives up its rights for.
func Folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "foreign")
	fdtest.Check(t, err)
	fdtest.Check(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// write makes a file and returns its path.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	fdtest.Check(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// Need returns the path of a program without which a test is skipped, except in CI.
func Need(t testing.TB, names ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a real server")
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("no %s here", names[0])
	}
	t.Skipf("no %s here", names[0])
	return ""
}

// Logger writes to the test's log.
func Logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: testLog{t}, Level: hclog.Debug})
}

type testLog struct{ testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
