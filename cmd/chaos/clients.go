package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/handfast/handfast/cmd/chaos/history"
)

// clientPatience is how long a client waits for an answer.
const clientPatience = time.Minute

// recorder collects what is noted.
type recorder struct {
	began time.Time

	mu      sync.Mutex
	history history.History
	ids     int
}

func (r *recorder) now() time.Duration { return time.Since(r.began) }

func (r *recorder) connection(c history.Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids++
	c.ID = r.ids
	r.history.Connections = append(r.history.Connections, c)
}

func (r *recorder) deed(d history.Deed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Deeds = append(r.history.Deeds, d)
}

// client comes again and again, always from the same address.
type client struct {
	*recorder
	address string
	from    netip.Addr
	dice    *rand.Rand
}

// run returns when ctx has ended, and what it has begun is over.
func (c *client) run(ctx context.Context) {
	for c.sleep(ctx, 50, 600) {
		c.connection(c.visit())
	}
}

// sleep waits for so many milliseconds, or tells that ctx has ended.
func (c *client) sleep(ctx context.Context, least, most int) bool {
	select {
	case <-time.After(time.Duration(least+c.dice.IntN(most-least)) * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// asks are what a client asks for on one connection.
func (c *client) asks() (paths []string) {
	switch n := c.dice.IntN(100); {
	case n < 45:
		return []string{"/"}
	case n < 80:
		for range 2 + c.dice.IntN(6) {
			paths = append(paths, "/")
		}
		return paths
	case n < 92:
		return []string{fmt.Sprintf("/sleep/%dms", 200+c.dice.IntN(2000))}
	default:
		return []string{fmt.Sprintf("/events/%dms", 500+c.dice.IntN(2500))}
	}
}

// visit makes one connection and what is asked for on it.
func (c *client) visit() (conn history.Connection) {
	conn.Key, conn.Dial = c.from, c.now()
	defer func() { conn.Closed = c.now() }()
	dialer := net.Dialer{Timeout: clientPatience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))}
	socket, err := dialer.Dial("tcp", c.address)
	if err != nil {
		conn.Err = err.Error()
		return conn
	}
	defer socket.Close()
	conn.Connected = c.now()
	counted := &counting{Conn: socket}
	reader := bufio.NewReader(counted)
	paths := c.asks()
	for i, path := range paths {
		if i > 0 {
			c.pause()
		}
		r, more := c.request(counted, reader, path, i == len(paths)-1)
		conn.Requests = append(conn.Requests, r)
		if !more {
			break
		}
	}
	return conn
}

// pause is between two requests on a connection: shorter than half of a second, after which a worker that was replaced may have
// closed the connection, or, now and then, longer.
func (c *client) pause() {
	if c.dice.IntN(8) == 0 {
		c.sleep(context.Background(), 1500, 2500)
	} else {
		c.sleep(context.Background(), 5, 400)
	}
}

// counting counts the bytes that are read.
type counting struct {
	net.Conn
	n int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n += n
	return n, err
}

// says is the line of a worker in its answer.
var says = regexp.MustCompile(`slot=(\d+) pid=(\d+) generation=(\d+) client=(\S+)\n`)

// request makes one request; more: another one may follow on the connection.
func (c *client) request(conn *counting, reader *bufio.Reader, path string, last bool) (r history.Request, more bool) {
	before := conn.n
	r.Path, r.Sent = path, c.now()
	_, long, found := strings.Cut(path[1:], "/")
	if found {
		r.Takes, _ = time.ParseDuration(long)
	}
	conn.SetDeadline(time.Now().Add(clientPatience))
	closes := ""
	if last {
		closes = "Connection: close\r\n"
	}
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: chaos\r\n%s\r\n", path, closes)
	if err == nil {
		more, err = read(&r, reader)
	}
	r.Done, r.Read = c.now(), conn.n-before
	if err != nil {
		r.Err, r.Late = err.Error(), errors.Is(err, os.ErrDeadlineExceeded)
	}
	return r, more && err == nil
}

// errNoEnd: events ended without their last one.
var errNoEnd = errors.New("the events end without the last one")

// read reads an answer to its end, and notes what there is of it also when that is missing.
func read(r *history.Request, reader *bufio.Reader) (more bool, err error) {
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		return false, err
	}
	body, err := io.ReadAll(resp.Body)
	r.Status = resp.StatusCode
	if m := says.FindSubmatch(body); m != nil {
		r.Slot, _ = strconv.Atoi(string(m[1]))
		r.PID, _ = strconv.Atoi(string(m[2]))
		r.Generation, _ = strconv.Atoi(string(m[3]))
		r.Client, _ = netip.ParseAddr(string(m[4]))
	} else if err == nil && r.Status == http.StatusOK {
		err = fmt.Errorf("strange answer %q", body)
	}
	if err == nil && r.Status == http.StatusOK && strings.HasPrefix(r.Path, "/events") && !strings.HasSuffix(string(body), "data: end\n\n") {
		err = errNoEnd
	}
	return !resp.Close, err
}
