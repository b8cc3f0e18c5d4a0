package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tunnel is what a script says that lets clients turn a connection into one that echoes, as a
// WebSocket is a connection that goes on.
const tunnel = `
server.on('upgrade', (req, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n');
  socket.on('data', (data) => socket.write(data));
  socket.on('end', () => socket.end());
  socket.on('error', () => {});
});
`

// openTunnel opens one, which lives until its end is asked for.
func (b *instance) openTunnel() (conn net.Conn, lines *bufio.Reader) {
	b.t.Helper()
	conn, err := b.dial(source(0))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	lines = bufio.NewReader(conn)
	response, err := http.ReadResponse(lines, httptest.NewRequest("GET", "/", nil))
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		b.t.Fatalf("no tunnel: %v, %v", response, err)
	}
	return conn, lines
}

// TestNodeFinishes is row A8: a worker that a timer keeps, and one that has sent a socket to its
// primary, ends when its last connection has, not at the drain timeout, and not before.
func TestNodeFinishes(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"Timer":  `setInterval(() => {}, 1e6); server.listen(+PORT);`,
		"Sticky": `setInterval(() => {}, 1e6); process.on('message', (m, s) => { if (m.msg === 'sticky:balance') server.emit('connection', s); }); process.send({ cmd: 'ready' });`,
		"Sent": `setInterval(() => {}, 1e6); server.listen(+PORT);
			server.on('request', (req, res) => { if (req.url === '/send') res.on('finish', () => process.send('take it', req.socket)); });
			process.on('disconnect', () => say('disconnected'));`,
	} {
		for _, route := range []string{"kernel", "master"} {
			t.Run(name+"/"+route, func(t *testing.T) {
				t.Parallel()
				b := startNode(t, 1, tunnel+script, nodeOptions{flags: []string{"--route", route}})
				first := b.worker(0)
				conn, lines := b.openTunnel()
				b.get(source(0), "/send") // or anything; its connection is closed

				b.signal(unix.SIGUSR2)
				b.await("reload finished")
				time.Sleep(2 * time.Second) // is on trial: longer than a worker with nothing left is given
				fmt.Fprintln(conn, "still there?")
				if line, err := lines.ReadString('\n'); err != nil || !alive(first) {
					t.Fatalf("%q, %v: the worker has a connection, and was ended", line, err)
				}
				conn.Close()
				for _, l := range b.awaitCount("worker exited", 1) {
					if l.PID != first {
						t.Errorf("worker %d has ended, want %d", l.PID, first)
					}
				}

				begin := time.Now()
				b.signal(unix.SIGTERM)
				if status := b.exit(); status != 0 {
					t.Errorf("status %d", status)
				}
				if took := time.Since(begin); took > 6*time.Second { // a timeout of 10 s
					t.Errorf("stopping took %v", took)
				}
				if name == "Sent" && !b.printed("disconnected") {
					t.Error("the worker that had sent a socket has not disconnected")
				}
			})
		}
	}
}

// printed tells whether a worker has written a line.
func (b *instance) printed(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if strings.TrimSpace(l.text) == text {
			return true
		}
	}
	return false
}
