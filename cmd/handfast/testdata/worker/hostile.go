package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"
)

// playHostile sends the master connections whose last close waits for 6,000 s, since they linger with
// data that nobody reads, and closes its own copies: by its mailbox or by Node's channel, whichever
// it has.
func playHostile() int {
	fd, err := strconv.Atoi(os.Getenv("HANDFAST_FD"))
	if err != nil {
		fd, err = strconv.Atoi(os.Getenv("NODE_CHANNEL_FD"))
	}
	if err != nil {
		return 1
	}
	signal.Ignore(unix.SIGTERM)
	for range 10 {
		conn, err := lingering()
		if err != nil {
			fmt.Fprintln(os.Stderr, "hostile:", err)
			return 1
		}
		unix.Kill(os.Getppid(), unix.SIGSTOP) // so that ours is closed first
		if unix.Sendmsg(fd, []byte("hostile\n"), unix.UnixRights(conn), nil, unix.MSG_NOSIGNAL) != nil {
			break // nobody hears us any more, and closing it here would make us wait
		}
		unix.Close(conn)
		unix.Kill(os.Getppid(), unix.SIGCONT)
	}
	unix.Kill(os.Getppid(), unix.SIGCONT)
	fmt.Fprintln(os.Stderr, "hostile")
	forever()
	return 0
}

// lingering returns such a connection. Its other end stays open, too.
func lingering() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return -1, err
	}
	defer ln.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	to := &unix.SockaddrInet4{Port: ln.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(fd, to); err != nil {
		return -1, err
	}
	if _, err := ln.Accept(); err != nil {
		return -1, err
	}
	unix.SetNonblock(fd, true)
	for data := make([]byte, 1<<20); err == nil; {
		_, err = unix.Write(fd, data)
	}
	return fd, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 6000})
}
