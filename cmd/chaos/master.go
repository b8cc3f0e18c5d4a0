package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// How handfast is run. Times are short, so that there is enough that a trial of seconds can see.
const (
	slotsAtFirst = 3
	retryDelay   = 50 * time.Millisecond
	maxRetries   = 100
	drainTimeout = 8 * time.Second
	killTimeout  = 2 * time.Second
	stopTimeout  = 5 * time.Second

	// adminPatience is for an answer to what is asked of the master, which may be stopped, or be short of memory.
	adminPatience = 40 * time.Second
	settlePause   = 20 * time.Millisecond
)

// flags are those of `handfast run`.
var flags = []string{
	"--workers", fmt.Sprint(slotsAtFirst), "--retry-delay", retryDelay.String(), "--max-retries", fmt.Sprint(maxRetries),
	"--drain-timeout", drainTimeout.String(), "--kill-timeout", killTimeout.String(), "--stop-timeout", stopTimeout.String(),
	"--probation", "300ms", "--min-uptime", "300ms", "--backoff-min", "50ms", "--backoff-max", "400ms",
}

// terms are those of a trial with these flags.
func terms(seed uint64, route, link string) history.Terms {
	t := history.Terms{
		Seed: seed, Route: route, Link: link, Slots: slotsAtFirst,
		Patience: retryDelay * maxRetries, Drain: drainTimeout, Kill: killTimeout,
		Start: 6 * time.Second, Leave: 8 * time.Second, Answer: 10 * time.Second, Slack: 2 * time.Second,
	}
	switch link {
	case "native":
		t.Idle = time.Second
	case "node": // http.Server.close closes what is idle at once
		t.Idle = time.Nanosecond
	}
	return t
}

// master is the program that is tried.
type master struct {
	cmd     *exec.Cmd
	address string
	broken  string // while this file exists workers end at once
	exited  chan struct{}
	admin   http.Client
}

// startMaster runs handfast with its log and its socket on the disk, and its workers in the cgroup if there is one: the master, which is as small as a
// worker here, would be what the kernel kills, and that ends all.
func startMaster(s *settings, route, link, dir string, d *disk, m *memory) (*master, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	broken, socket := filepath.Join(dir, "broken"), filepath.Join(d.dir, "admin.sock")
	args := append([]string{"run", "--listen", address, "--route", route, "--worker-link", link, "--admin", socket}, flags...)
	if route == "master" {
		args = append(args, "--access-log", filepath.Join(d.dir, "access.log"))
	}
	if args = append(args, "--"); m != nil {
		args = append(args, "sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(m.dir, "cgroup.procs"))
	}
	if link == "node" {
		args = append(args, "node", s.node, "broken", broken)
	} else {
		args = append(args, s.worker, "broken", broken)
	}
	log, err := os.Create(filepath.Join(d.dir, logFile))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	run := &master{cmd: exec.Command(s.handfast, args...), address: address, broken: broken, exited: make(chan struct{})}
	run.cmd.Stdout, run.cmd.Stderr = log, log
	if link != "native" {
		run.cmd.Env = append(os.Environ(), "HANDFAST_TEST_LISTEN="+address)
	}
	run.admin = http.Client{Timeout: adminPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	if err := run.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { run.cmd.Wait(); close(run.exited) }()
	return run, nil
}

// freeAddress is one that nobody listens on.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func (m *master) pid() int { return m.cmd.Process.Pid }

func (m *master) hasEnded() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// status is what a trial asks for. It is not believed where clients can tell.
type status struct {
	Ready bool
	Slots []struct {
		InUse  bool `json:"in_use"`
		Worker *struct{ PID int }
	}
	Reload *struct {
		Generation int
		Ended      *time.Time
		Error      string
	}
	Upgrade struct {
		Count int
		At    *time.Time
		Error string
	}
}

// inUse tells whether there are n slots, each with clients and a worker.
func (s *status) inUse(n int) bool {
	for _, slot := range s.Slots {
		if !slot.InUse || slot.Worker == nil {
			return false
		}
	}
	return len(s.Slots) == n
}

// ask asks once. An answer of several lines is read to the last one, which counts.
func (m *master) ask(method, path, body string, answer any) error {
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.admin.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	case err != nil:
		return err
	}
	for in := json.NewDecoder(bytes.NewReader(text)); ; {
		if err := in.Decode(answer); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// errUnsettled: what was asked for was not so in time.
var errUnsettled = errors.New("not done in time")

// await asks for the status until it is as wanted. While the program is being replaced nobody answers.
func (m *master) await(wanted func(*status) bool) error {
	var last error
	for deadline := time.Now().Add(adminPatience); time.Now().Before(deadline); time.Sleep(settlePause) {
		var s status
		if last = m.ask("GET", "/v1/status", "", &s); last == nil && wanted(&s) {
			return nil
		}
		if m.hasEnded() {
			return errors.New("handfast has ended")
		}
	}
	return errors.Join(errUnsettled, last)
}

// stop tells it to stop, and returns when it has.
func (m *master) stop() error {
	if m.hasEnded() {
		return fmt.Errorf("handfast has ended before: %v", m.cmd.ProcessState)
	}
	m.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-m.exited:
		if !m.cmd.ProcessState.Success() {
			return fmt.Errorf("handfast stops with %v", m.cmd.ProcessState)
		}
		return nil
	case <-time.After(stopTimeout + killTimeout + adminPatience):
		m.cmd.Process.Kill()
		<-m.exited
		return errors.New("handfast does not stop")
	}
}
