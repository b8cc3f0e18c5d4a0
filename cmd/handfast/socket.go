package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/unixsocket"
)

// unixScheme begins a Unix socket among the addresses of --listen: unix:/PATH?mode=0660&group=NAME
const unixScheme = "unix:"

// socketMode is that of a Unix socket whose address does not say it: this user and its group may connect, and so say who a client is.
const socketMode = 0o660

// isSocket tells whether an address is a Unix socket's.
func isSocket(address string) bool { return strings.HasPrefix(address, unixScheme) }

// parseSocket reads the address of a Unix socket.
func parseSocket(address string) (path string, o unixsocket.Options, err error) {
	const want = "want unix:/PATH, and behind it ?mode=0660&group=NAME if it is to have other rights"
	path, query, _ := strings.Cut(strings.TrimPrefix(address, unixScheme), "?")
	if strings.HasPrefix(path, "@") {
		return "", o, errors.New("an abstract socket has no rights, so that anybody on this machine could say who a client is: " + want)
	}
	if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") {
		return "", o, errors.New(want)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", o, fmt.Errorf("%w: %s", err, want)
	}
	o = unixsocket.Options{Mode: socketMode, Backlog: unix.SOMAXCONN}
	for name, all := range values {
		switch value := all[len(all)-1]; name {
		case "mode":
			mode, err := strconv.ParseUint(value, 8, 32)
			if err != nil || mode > 0o777 {
				return "", o, fmt.Errorf("mode=%s: want an octal number up to 0777", value)
			}
			o.Mode = fs.FileMode(mode)
		case "group":
			g, err := findGroup(value)
			if err != nil {
				return "", o, fmt.Errorf("group=%s: %w", value, err)
			}
			o.Group = int(g)
		default:
			return "", o, fmt.Errorf("%s=: there is no such setting of a Unix socket: %s", name, want)
		}
	}
	path, err = unixsocket.Absolute(path)
	return path, o, err
}

// pathOfSocket is where a Unix socket of --listen is; empty: that is none.
func pathOfSocket(address string) string {
	if !isSocket(address) {
		return ""
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(address, unixScheme), "?")
	return filepath.Clean(path)
}

// listenSocket opens a Unix socket of --listen.
func listenSocket(address string) (*unixsocket.Listener, error) {
	var ln *unixsocket.Listener
	path, o, err := parseSocket(address)
	if err == nil {
		ln, err = unixsocket.Listen(path, o)
	}
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", address, remediedSocket(err))
	}
	return ln, nil
}

// remediedSocket is why a Unix socket cannot be made, and what to do about it.
func remediedSocket(err error) error {
	remedy := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unixsocket.ErrInUse):
		remedy = "; stop that, or listen at another path"
	case errors.Is(err, fs.ErrNotExist):
		remedy = ": the directory has to be there (in a systemd unit RuntimeDirectory= makes one below /run)"
	case errors.Is(err, fs.ErrPermission):
		remedy = ": the directory has to be this user's (in a systemd unit RuntimeDirectory= makes one below /run), and group= one that it is in"
	}
	return fmt.Errorf("%w%s", err, remedy)
}

// socket returns the first Unix socket that is listened on; empty: there is none.
func (r intent) socket(f facts) string {
	if i := slices.IndexFunc(r.listen, isSocket); i >= 0 {
		return "--listen " + r.listen[i]
	}
	if f.passedSocket != "" {
		return "the Unix socket " + f.passedSocket + " of the service manager"
	}
	return ""
}

// fitsSocket says what keeps a Unix socket from being listened on, for workers of a link.
func (r intent) fitsSocket(d *decision, f facts) error {
	socket := r.socket(f)
	switch {
	case socket == "":
		return nil
	case !r.header && !r.brought && !r.proxyProtocol:
		return usagef("%s: those who connect there have no address by which clients could be told apart; use --behind-proxy if the proxy writes who the client is, --proxy-protocol, or a --key or --session that clients bring", socket)
	case d.link != master.LinkNative:
		return usagef("%s: workers of --worker-link %s do not take connections of a Unix socket; use --worker-link native with a program that knows handfast (package worker, examples/python), or a port, such as --listen 127.0.0.1:8080",
			socket, d.link.Flag())
	}
	return nil
}
