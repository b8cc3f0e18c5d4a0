package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/unixsocket"
)

// ErrNotRunning: no master answers. The error that wraps it says where, and what to do.
var ErrNotRunning = errors.New("no handfast answers")

// ErrSeveral: several masters run, and nobody has said which. The error that wraps it lists them.
var ErrSeveral = errors.New("several handfasts run")

const (
	dialTimeout = 5 * time.Second
	// headTimeout is how long the master may take to begin an answer.
	headTimeout = 15 * time.Second
	// exitTimeout is how long its process may take to end after its last word.
	exitTimeout = 10 * time.Second
	maxAnswer   = 16 << 20
	maxStep     = 1 << 20
)

// Client asks a master. Its methods may be called at the same time; how long they wait is up to
// their context, but a master that does not begin to answer is given up.
type Client struct {
	addr Address
	http *http.Client
	base string
}

// NewClient asks the master at an address. Nothing is sent yet.
func NewClient(a Address) *Client {
	c := &Client{addr: a, base: "http://" + a.Address}
	if a.Network == "unix" {
		c.base = "http://localhost"
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		ResponseHeaderTimeout: headTimeout,
		DisableKeepAlives:     true, // a connection for each question: no goroutines are left
	}}
	return c
}

// Find returns a client of the master with this name, which listens where it does by default. If
// name is empty, nobody has said which: it is the one with the default name, else the only one that
// runs. The error matches ErrNotRunning if there is none, and ErrSeveral if there are several.
func Find(ctx context.Context, name string) (*Client, error) {
	var looked, others []string
	for _, dir := range directories() {
		c := NewClient(socketIn(dir, cmp.Or(name, DefaultName)))
		looked = append(looked, c.addr.Address)
		if strings.HasPrefix(dir, os.TempDir()+"/") && checkPrivate(dir) != nil {
			continue // it is not there, or somebody else's, who could say anything
		}
		conn, err := c.dial(ctx)
		switch {
		case err == nil:
			conn.Close()
			return c, nil
		case !errors.Is(err, ErrNotRunning):
			return nil, err
		}
		running := runningIn(ctx, dir)
		switch {
		case name != "":
			others = append(others, running...)
		case len(running) == 1:
			return NewClient(socketIn(dir, running[0])), nil
		case len(running) > 1:
			return nil, fmt.Errorf("%w: say --name %s", ErrSeveral, strings.Join(running, " or --name "))
		}
	}
	remedy := "is it running, and with --admin or --name?"
	if len(others) > 0 {
		remedy = "there are --name " + strings.Join(others, ", ")
	}
	return nil, fmt.Errorf("%w at %s: %s", ErrNotRunning, strings.Join(looked, " or "), remedy)
}

// Running returns the names of the masters that this user can ask.
func Running(ctx context.Context) (names []string) {
	for _, dir := range directories() {
		names = append(names, runningIn(ctx, dir)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// runningIn returns the names of the masters that listen in a directory. Sockets that killed ones
// have left are none.
func runningIn(ctx context.Context, dir string) (names []string) {
	if checkPrivate(dir) != nil {
		return nil
	}
	for _, path := range socketPaths(dir) {
		conn, err := NewClient(Address{"unix", path}).dial(ctx)
		if err == nil {
			conn.Close()
		}
		if err == nil || errors.Is(err, syscall.EAGAIN) { // which is busy
			names = append(names, nameIn(path))
		}
	}
	return names
}

// NameOf returns the name of the master that this process is, if it can be asked; else "".
func NameOf(ctx context.Context, pid int) string {
	for _, dir := range directories() {
		for _, name := range runningIn(ctx, dir) {
			conn, err := NewClient(socketIn(dir, name)).dial(ctx)
			if err != nil {
				continue
			}
			its, _ := unixsocket.Peer(conn)
			conn.Close()
			if its == pid {
				return name
			}
		}
	}
	return ""
}

// Addr returns where the master is asked.
func (c *Client) Addr() Address { return c.addr }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, c.addr.Network, c.addr.Address)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("admin: %s belongs to another user: ask as that one, or as root: %w", c.addr, fs.ErrPermission)
	case errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("%w at %s: is it running, and with this --admin?", ErrNotRunning, c.addr)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s: it has ended", ErrNotRunning, c.addr)
	default:
		return nil, fmt.Errorf("admin: %w", err)
	}
}

// Status returns what the master is doing.
func (c *Client) Status(ctx context.Context) (s master.Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Place returns where a client belongs.
func (c *Client) Place(ctx context.Context, client string) (p master.Placement, err error) {
	return p, c.ask(ctx, http.MethodGet, "/v1/slot?client="+url.QueryEscape(client), nil, &p)
}

// Scale changes the number of slots. New ones come into use when their workers are ready.
func (c *Client) Scale(ctx context.Context, slots int) (s Scaled, err error) {
	return s, c.ask(ctx, http.MethodPost, "/v1/scale", map[string]int{"slots": slots}, &s)
}

// Reload replaces all workers, and returns when that has ended: nil if all slots have a worker
// of the new generation. step is told of each step.
func (c *Client) Reload(ctx context.Context, step func(Progress)) error {
	return c.follow(ctx, "/v1/reload", struct{}{}, step)
}

// Drain replaces the worker of a slot, and returns when the new one has taken the slot over, or why
// it has not.
func (c *Client) Drain(ctx context.Context, slot int, step func(Progress)) error {
	return c.follow(ctx, "/v1/drain", Drain{Slot: &slot}, step)
}

// DrainNow has workers that linger drain; d says which.
func (c *Client) DrainNow(ctx context.Context, d Drain) (drained Drained, err error) {
	d.Now = true
	return drained, c.ask(ctx, http.MethodPost, "/v1/drain", d, &drained)
}

const (
	// comeUpTimeout is how long the next program may take until it answers, or is known to have
	// failed.
	comeUpTimeout = 30 * time.Second
	comeUpPoll    = 20 * time.Millisecond
)

// Upgrade replaces the master's program, and returns when the next one answers: the versions of both.
func (c *Client) Upgrade(ctx context.Context) (before, after string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, comeUpTimeout, errors.New("the new program does not answer"))
	defer cancel()
	var begun Upgrading
	if err := c.ask(ctx, http.MethodPost, "/v1/upgrade", struct{}{}, &begun); err != nil {
		return "", "", err
	}
	for {
		status, err := c.Status(ctx)
		switch {
		case err == nil && status.Upgrade.Count >= begun.Count:
			return begun.From, status.Version, nil
		case err == nil && status.Upgrade.Error != "":
			return "", "", errors.New(status.Upgrade.Error)
		case errors.Is(err, ErrNotRunning):
			return "", "", fmt.Errorf("the new program has come up when it was tried, and then it ended; see the master's log: %w", err)
		case ctx.Err() != nil:
			return "", "", context.Cause(ctx)
		}
		select {
		case <-time.After(comeUpPoll):
		case <-ctx.Done():
		}
	}
}

// errSeen, returned by a step function, ends following. What was begun goes on.
var errSeen = errors.New("admin: seen enough")

// Stop stops the master. With wait it returns when that has ended, else when it has begun to.
func (c *Client) Stop(ctx context.Context, wait bool, step func(Progress)) error {
	process, err := c.process(ctx)
	if err != nil {
		return err
	}
	defer process.close()
	err = c.each(ctx, "/v1/stop", struct{}{}, func(p Progress) error {
		step(p)
		if !wait {
			return errSeen
		}
		return nil
	})
	if errors.Is(err, errSeen) {
		return nil
	}
	if err != nil {
		return err
	}
	return process.wait(ctx)
}

// ask sends a request and reads the answer.
func (c *Client) ask(ctx context.Context, method, path string, body, into any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("admin: %s: %w", c.addr, err)
	}
	return nil
}

// send returns the answer to a request that was accepted. The caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without a URL that nobody typed
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var failure Failure
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxStep))
	if json.Unmarshal(text, &failure) != nil || failure.Error == "" {
		failure.Error = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil, errors.New(failure.Error)
}

// follow sends a request, and returns how what it asks for has ended.
func (c *Client) follow(ctx context.Context, path string, body any, step func(Progress)) error {
	var last Progress
	err := c.each(ctx, path, body, func(p Progress) error {
		last = p
		step(p)
		return nil
	})
	switch {
	case err != nil:
		return err
	case last.Step == StepFailed:
		return errors.New(last.Error)
	case last.Step != StepFinished:
		return fmt.Errorf("admin: %s: the master has ended before it was done", c.addr)
	}
	return nil
}

// each calls f for each step of an answer. That the connection breaks is the end of them.
func (c *Client) each(ctx context.Context, path string, body any, f func(Progress) error) error {
	resp, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	decoder := json.NewDecoder(resp.Body)
	for {
		var p Progress
		if err := decoder.Decode(&p); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if _, garbage := errors.AsType[*json.SyntaxError](err); garbage {
				return fmt.Errorf("admin: %s: %w", c.addr, err)
			}
			return nil
		}
		if err := f(p); err != nil {
			return err
		}
	}
}

// process is the master's, if it runs on this machine; else nil.
type process struct{ pidfd *os.File }

// process returns the process that listens.
func (c *Client) process(ctx context.Context) (*process, error) {
	if c.addr.Network != "unix" {
		return nil, nil
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // until then it lives
	pid, _ := unixsocket.Peer(conn)
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil // of another PID namespace: the end of its answer must do
	}
	return &process{os.NewFile(uintptr(fd), "master")}, nil
}

// wait waits until it has ended.
func (p *process) wait(ctx context.Context) error {
	if p == nil {
		return nil
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	for deadline := time.Now().Add(exitTimeout); ; {
		ended := false
		raw.Control(func(fd uintptr) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
			ended = n == 1 && err == nil
		})
		switch {
		case ended:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return errors.New("admin: the master has stopped serving, but its process has not ended")
		}
	}
}

func (p *process) close() {
	if p != nil {
		p.pidfd.Close()
	}
}
