package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readyTimeout = 30 * time.Second // from the start of a peer until all workers answer
	stopTimeout  = 5 * time.Second  // from SIGTERM to SIGKILL
)

// stage is one peer in one round: its processes, where it listens, and its files.
type stage struct {
	settings
	peer     peer
	self     string // this program
	handfast string // the program built from this tree
	node     string // the folder of the Node programs
	dir      string // for configurations and logs
	files    int    // limit of open files of each process

	ctx     context.Context
	address netip.AddrPort // where clients connect
	started []*started

	balancerPIDs []int
	workerPIDs   []int // known when all have answered

	failure error // of a connection, to be shown
}

// started is a process of a peer, with a process group of its own.
type started struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it has been waited for
}

// open starts the peer. Call close in any case.
func (s *stage) open() (err error) {
	if s.address, err = freeAddress(); err != nil {
		return err
	}
	if err := s.peer.start(s); err != nil {
		return err
	}
	return s.await()
}

// close stops all processes: politely, then by force.
func (s *stage) close() {
	for _, p := range slices.Backward(s.started) {
		unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)
		select {
		case <-p.ended:
			continue
		case <-time.After(stopTimeout):
		}
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		for _, pid := range s.workerPIDs { // which may have groups of their own
			unix.Kill(pid, unix.SIGKILL)
		}
		<-p.ended
	}
}

// run starts a process and returns its id. What it says goes to a file.
func (s *stage) run(env []string, path string, args ...string) (int, error) {
	log, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%d.log", len(s.started))))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	p := &started{cmd: cmd, log: log.Name(), ended: make(chan struct{})}
	s.started = append(s.started, p)
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	return cmd.Process.Pid, nil
}

func (s *stage) runWorker(mode, address string) (int, error) {
	return s.run([]string{envWorker + "=" + mode, envAddress + "=" + address}, s.self)
}

func (s *stage) runPortWorker(address string) (int, error) { return s.runWorker(byPort, address) }

// write makes a configuration file.
func (s *stage) write(name, content string) (path string, err error) {
	path = filepath.Join(s.dir, name)
	return path, os.WriteFile(path, []byte(content), 0o600)
}

// until tries again until it works, a process has ended, or readyTimeout is over.
func (s *stage) until(try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, readyTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ended := s.hasEnded(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready within %v: %w%s", readyTimeout, err, s.logs())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// await waits until every worker has answered a request.
func (s *stage) await() (err error) {
	s.workerPIDs, err = s.answering(s.workers)
	return err
}

// answering waits until so many workers have answered, and returns their ids.
func (s *stage) answering(workers int) ([]int, error) {
	seen := map[int]bool{}
	client, clients := 0, max(s.clients, 100*workers) // few may all have the same worker
	err := s.until(func(ctx context.Context) error {
		for ; len(seen) < workers; client++ {
			pid, err := s.ask(ctx, client%clients, client)
			if err != nil {
				return fmt.Errorf("%d of %d workers answered: %w", len(seen), workers, err)
			}
			seen[pid] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(seen)), err
}

// retire ends processes whose time is over, and forgets them.
func (s *stage) retire(old []*started) error {
	old = slices.Clone(old) // it may be a part of s.started
	for _, p := range old {
		unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)
	}
	for _, p := range old {
		select {
		case <-p.ended:
		case <-time.After(stopTimeout):
			return fmt.Errorf("process %d is still there %v after SIGTERM", p.cmd.Process.Pid, stopTimeout)
		}
	}
	s.started = slices.DeleteFunc(s.started, func(p *started) bool { return slices.Contains(old, p) })
	return nil
}

// family returns the children of a process, and it, when there are as many as
// given and none is one of the old ones.
func (s *stage) family(pid, size int, old []int) (pids []int, err error) {
	isOld := func(child int) bool { return slices.Contains(old, child) }
	err = s.until(func(context.Context) error {
		if pids, err = children(pid); err == nil && (len(pids) != size || slices.ContainsFunc(pids, isOld)) {
			err = fmt.Errorf("process %d has children %v, want %d and none of %v", pid, pids, size, old)
		}
		return err
	})
	return append(pids, pid), err
}

// ask makes one request from a source address, for a client before a proxy there,
// and returns the process id of the worker that answered.
func (s *stage) ask(ctx context.Context, from, client int) (pid int, err error) {
	address := clientAddress(from)
	source := &net.TCPAddr{IP: address[:]}
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: source}).DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address.String()+"/short", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("X-Forwarded-For", forwardedAddress(client).String())
	res, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	return strconv.Atoi(res.Header.Get(headerWorker))
}

// hasEnded returns an error when one of the processes has ended.
func (s *stage) hasEnded() error {
	for _, p := range s.started {
		select {
		case <-p.ended:
			return fmt.Errorf("%s: %v%s", filepath.Base(p.cmd.Path), p.cmd.ProcessState, s.logs())
		default:
		}
	}
	return nil
}

// logs returns what the processes said, on lines of their own.
func (s *stage) logs() string {
	var all strings.Builder
	for _, p := range s.started {
		text, _ := os.ReadFile(p.log)
		if len(text) > 0 {
			fmt.Fprintf(&all, "\n%s", strings.TrimSpace(string(text)))
		}
	}
	return all.String()
}

// note keeps the reason of a failed connection.
func (s *stage) note(err error) {
	if err != nil {
		s.failure = err
	}
}

// canHold is how many connections the peer can hold at its limit of open files.
func (s *stage) canHold() int {
	const spare = 300 // for all other purposes
	if s.peer.files == 0 {
		return s.held
	}
	return min(s.held, (s.files-spare)/s.peer.files-s.concurrency)
}

// usage is what all involved have used until now.
type usage struct {
	balancer, workers, load time.Duration // processor time
	balancerMem, workersMem int64         // bytes
}

func (u usage) since(before usage) usage {
	return usage{
		u.balancer - before.balancer, u.workers - before.workers, u.load - before.load,
		u.balancerMem - before.balancerMem, u.workersMem - before.workersMem,
	}
}

func (u usage) total() time.Duration { return u.balancer + u.workers + u.load }

// metered runs a load, and returns what all involved have used for it, and have used in
// the end.
func (s *stage) metered(load func() error) (used, after usage, err error) {
	before, err := s.usage()
	if err != nil {
		return used, after, err
	}
	if err := load(); err != nil {
		return used, after, err
	}
	after, err = s.usage()
	return after.since(before), after, err
}

func (s *stage) usage() (u usage, err error) {
	if err := s.hasEnded(); err != nil {
		return u, err
	}
	var errs [5]error
	u.balancerMem, errs[0] = memory(s.balancerPIDs)
	u.workersMem, errs[1] = memory(s.workerPIDs)
	u.balancer, errs[2] = processorTime(s.balancerPIDs)
	u.workers, errs[3] = processorTime(s.workerPIDs)
	u.load, errs[4] = processorTime([]int{os.Getpid()})
	if err := errors.Join(errs[:]...); err != nil {
		return u, fmt.Errorf("%w%s", err, s.logs())
	}
	return u, nil
}

// freeAddress returns a loopback address with a port that was free a moment ago.
func freeAddress() (netip.AddrPort, error) {
	ln, err := net.Listen("tcp4", "0.0.0.0:0") // free on all addresses, also of connections that have just ended
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer ln.Close()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ln.Addr().(*net.TCPAddr).AddrPort().Port()), nil
}
