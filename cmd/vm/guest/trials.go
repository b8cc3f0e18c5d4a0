package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A trial starts handfast as its users do, and asks it while workers are replaced and killed, and handfast itself upgraded.
type trial struct {
	name string
	args []string
	held bool // accept injection: its workers cannot be kept over an upgrade, and it needs Linux 5.19
}

// address is where handfast is asked.
var address = "127.0.0.1:8080"

var trials = []trial{
	{"a Go worker, the kernel routes", []string{"--", "hello"}, false},
	{"a Go worker, the master routes", []string{"--route", "master", "--", "hello"}, false},
	{"any server, the kernel routes", []string{"--worker-link", "any", "--", "/init", "serve", address}, false},
	{"any server, the master routes", []string{"--worker-link", "any", "--route", "master", "--", "/init", "serve", address}, true},
	{"any server by systemd's protocol", []string{"--worker-link", "activation", "--", "/init", "serve", "3"}, false},
}

// patience is how long anything may take: some processors here are programs.
const patience = 2 * time.Minute

// master is handfast.
func (t trial) master(ctx context.Context) *exec.Cmd {
	return exec.CommandContext(ctx, "handfast", append([]string{"run", "--listen", address, "--workers", "2", "--probation", "0"}, t.args...)...)
}

// refused starts it where the kernel cannot do what it takes: handfast ends, and says what that is.
func (t trial) refused() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said, err := t.master(ctx).CombinedOutput()
	if err == nil || ctx.Err() != nil || !bytes.Contains(said, []byte("it needs Linux 5.19 or newer")) {
		return fmt.Errorf("%w\n%s", cmp.Or(err, errors.New("it ends well")), said)
	}
	return nil
}

func (t trial) run() (err error) {
	var log bytes.Buffer
	master := t.master(context.Background())
	master.Stdout, master.Stderr = &log, &log
	master.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := master.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- master.Wait() }()
	defer func() {
		if err != nil {
			syscall.Kill(-master.Process.Pid, syscall.SIGKILL)
			err = fmt.Errorf("%w\n%s", err, last(log.Bytes(), 4000))
		}
	}()
	if err := until(func() error { return command("status", "--ready") }); err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	first, err := askAll(nil)
	if err != nil {
		return err
	}
	for _, event := range []struct {
		name string
		do   func() error
	}{
		{"another request", func() error { return nil }},
		{"a reload", func() error { return command("reload") }},
		{"an upgrade", func() error {
			if t.held {
				return nil
			}
			return command("upgrade")
		}},
		{"a worker's death", kill},
	} {
		if err := event.do(); err != nil {
			return fmt.Errorf("%s: %w", event.name, err)
		}
		if _, err := askAll(first); err != nil {
			return fmt.Errorf("after %s: %w", event.name, err)
		}
	}
	if err := command("stop"); err != nil {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		return errors.New("it does not stop")
	}
}

// clients are addresses of this machine.
const clients = 16

// askAll asks as each client, and returns their slots, which must be those of before, and more than one.
func askAll(before map[string]string) (map[string]string, error) {
	slots, used := make(map[string]string), make(map[string]bool)
	for i := range clients {
		client := fmt.Sprintf("127.0.0.%d", i+1)
		said, err := ask(client)
		if err != nil {
			return nil, err
		}
		slot, rest, found := strings.Cut(strings.TrimPrefix(said, "worker "), ": visit ")
		if !found || !strings.HasSuffix(rest, " of "+client) {
			return nil, fmt.Errorf("%s is told %q", client, said)
		}
		slots[client], used[slot] = slot, true
		if before != nil && before[client] != slot {
			return nil, fmt.Errorf("%s was in slot %s and is in %s", client, before[client], slot)
		}
	}
	if len(used) != 2 {
		return nil, fmt.Errorf("slots used: %v", used)
	}
	return slots, nil
}

func ask(client string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}).DialContext}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// kill ends a worker that serves, as a crash does.
func kill() error {
	pids, err := workers()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errors.New("no worker is there")
	}
	return syscall.Kill(pids[0], syscall.SIGKILL)
}

// workers returns the processes that serve.
func workers() (pids []int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		line, _ := os.ReadFile(file)
		if bytes.HasPrefix(line, []byte("hello\x00")) || bytes.HasPrefix(line, []byte("/init\x00serve\x00")) || bytes.HasPrefix(line, []byte(server+"\x00")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func command(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if said, err := exec.CommandContext(ctx, "handfast", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("handfast %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return nil
}

// until tries something until it works.
func until(try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// serve is a server that knows nothing of handfast: it binds an address, or takes the listener of a descriptor.
func serve(where string) {
	var (
		mu       sync.Mutex
		visits   = make(map[string]int)
		listener net.Listener
		err      error
	)
	if fd, wrong := strconv.Atoi(where); wrong == nil {
		listener, err = net.FileListener(os.NewFile(uintptr(fd), "listener"))
	} else {
		listener, err = net.Listen("tcp", where)
	}
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		mu.Lock()
		visits[client]++
		visit := visits[client]
		mu.Unlock()
		fmt.Fprintf(w, "worker %s: visit %d of %s\n", os.Getenv("HANDFAST_SLOT"), visit, client)
		if slowly, err := time.ParseDuration(r.URL.Query().Get("for")); err == nil {
			http.NewResponseController(w).Flush()
			time.Sleep(slowly)
			fmt.Fprintln(w, "done")
		}
	})}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		server.Shutdown(context.Background())
		os.Exit(0)
	}()
	log.Print(server.Serve(listener))
	select {} // until what is under way has ended
}
