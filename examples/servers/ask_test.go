package servers_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// asks returns how to ask a server that does not say which process answers, or whom: hello is sent to it,
// and answered tells when there is enough of an answer.
func asks(hello string, answered func(text []byte) bool) func(net.Conn) (string, error) {
	return func(c net.Conn) (string, error) {
		if _, err := io.WriteString(c, hello); err != nil {
			return "", err
		}
		var text []byte
		for !answered(text) {
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if text = append(text, buf[:n]...); err != nil && !answered(text) {
				return "", fmt.Errorf("the answer is %.100q: %w", text, err)
			}
		}
		if bytes.HasPrefix(text, []byte("HTTP/1.1 502")) {
			return "", errRefused
		}
		return holding(c)
	}
}

// holding is what a process would say that has the other end of a connection.
func holding(c net.Conn) (string, error) {
	pid, err := owner(c)
	return fmt.Sprintf("pid=%d client=%s", pid, clientOf(c)), err
}

func contains(want string) func([]byte) bool {
	return func(text []byte) bool { return bytes.Contains(text, []byte(want)) }
}

func long(n int) func([]byte) bool { return func(text []byte) bool { return len(text) >= n } }

// askKept makes one HTTP request on a connection that is kept, so that it can be seen who has it.
func askKept(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "GET /stat HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return "", err
	}
	if response.StatusCode == http.StatusBadGateway {
		return "", errRefused
	}
	return holding(c)
}

// notYet is how long a client waits before it asks again that was told so.
const notYet = 50 * time.Millisecond

// errNotYet: a server has answered that it cannot serve yet.
var errNotYet = errors.New("the server is not ready")

var (
	askMemcached = asks("version\r\n", contains("VERSION"))
	askNATS      = asks("", contains("INFO {"))
	askMQTT      = asks("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", long(4))
	askSSH       = asks("", contains("SSH-2.0-"))
	askIMAP      = asks("", contains("* OK"))
	askXMPP      = asks(`<?xml version="1.0"?><stream:stream to="localhost" xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams" version="1.0">`, contains("<stream:features"))
	// A client of iperf3 sends 37 bytes by which its connections are known, and is told what is next, or that another one is served.
	askIperf = asks("handfast-handfast-handfast-handfast-\x00", long(1))
)

// askPostgres begins a session as the user postgres (PostgreSQL's protocol, version 3.0).
func askPostgres(c net.Conn) (string, error) {
	body := binary.BigEndian.AppendUint32(nil, 3<<16)
	body = append(body, "user\x00postgres\x00\x00"...)
	hello := append(binary.BigEndian.AppendUint32(nil, uint32(4+len(body))), body...)
	const ready = "Z\x00\x00\x00\x05I" // ReadyForQuery, idle
	var said []byte
	who, err := asks(string(hello), func(text []byte) bool {
		said = text
		return contains(ready)(text) || contains("FATAL")(text)
	})(c)
	if contains("FATAL")(said) { // it recovers from a process that was killed
		return "", fmt.Errorf("%w: %q", errNotYet, said)
	}
	return who, err
}
