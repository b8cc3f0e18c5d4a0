// Package systemd tells systemd what the master is doing (man 3 sd_notify): that it is
// ready, that it reloads, that it stops, and that it is alive; and takes the listeners that
// systemd has opened (man 3 sd_listen_fds).
//
// A Notifier sends; Follow says what, by the supervisor's snapshots.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds how long one notification may wait for a manager that does not read.
const sendTimeout = 5 * time.Second

// Notifier sends notifications to a service manager.
type Notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration // within which the manager wants to hear from us; 0: not
}

// Open returns a Notifier for the socket that NOTIFY_SOCKET names; nil if it names none.
func Open() (*Notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil, fmt.Errorf("systemd: NOTIFY_SOCKET=%s: want a path, or @ and a name", path)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // which knows @
	if err != nil {
		return nil, fmt.Errorf("systemd: NOTIFY_SOCKET: %w", err)
	}
	return &Notifier{conn, watchdog()}, nil
}

// watchdog reads the interval that is meant for this process (man 3 sd_watchdog_enabled).
func watchdog() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	const longest = 24 * time.Hour
	n, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || n <= 0 || n > longest.Microseconds() {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// Send sends assignments such as READY=1 in one message.
func (n *Notifier) Send(assignments ...string) error {
	n.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, err := n.conn.Write([]byte(strings.Join(assignments, "\n")))
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	return nil
}

// Close gives up the socket.
func (n *Notifier) Close() error { return n.conn.Close() }

// reloading is what is sent at the beginning of a reload. The time tells the manager that
// it is the one that it has asked for, and not an earlier one.
func reloading() []string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return []string{"RELOADING=1"}
	}
	return []string{"RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)}
}

// everyPing calls ping twice within each interval of the watchdog, and tells the manager
// each time that it succeeds, until ctx ends.
func (n *Notifier) everyPing(ctx context.Context, ping func(context.Context) error, failed func(error)) {
	if n.watchdog == 0 {
		return
	}
	ticker := time.NewTicker(n.watchdog / 2)
	defer ticker.Stop()
	for {
		// As long as it takes: the manager ends us if it is too long.
		err := ping(ctx)
		if err == nil {
			err = n.Send("WATCHDOG=1")
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
