package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/worker"
)

// playListens serves as a program that knows nothing of handfast.
func playListens(address string) int {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return serveUntilTold(ln)
}

// playCareless serves as http.ListenAndServe does, or on the listener that it inherits.
func playCareless() int {
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if address := os.Getenv("HANDFAST_TEST_LISTEN"); address != "" {
		ln, err = net.Listen("tcp", address)
	}
	switch {
	case err != nil:
	case os.Getenv("HANDFAST_TEST_TLS") == "1":
		err = (&http.Server{TLSConfig: ownCertificate()}).ServeTLS(ln, "", "")
	default:
		err = http.Serve(ln, nil)
	}
	fmt.Fprintln(os.Stderr, "worker:", err)
	return 1
}

// serveUntilTold serves until SIGTERM.
func serveUntilTold(ln net.Listener) int {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	server := &http.Server{Handler: worker.StickyCookie("route", http.DefaultServeMux)}
	go server.Serve(ln)
	<-ctx.Done()
	// Shutdown alone closes connections that have not made their first request.
	ln.Close()
	time.Sleep(200 * time.Millisecond)
	server.Shutdown(context.Background())
	return 0
}

// playAccepts answers one request on each connection, with so many threads that wait in accept.
func playAccepts(address string, n int) int {
	at := netip.MustParseAddrPort(address)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	if err == nil {
		err = unix.Listen(fd, 10)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	var threads sync.WaitGroup
	for range n {
		threads.Go(func() {
			runtime.LockOSThread()
			for {
				conn, peer, err := unix.Accept(fd)
				if err == unix.EINTR || err == unix.ECONNABORTED {
					continue
				}
				if err != nil {
					return
				}
				answerRaw(conn, peer)
			}
		})
	}
	threads.Wait()
	return 0
}

// answerRaw answers a request with system calls that wait.
func answerRaw(conn int, peer unix.Sockaddr) {
	defer unix.Close(conn)
	from, ok := peer.(*unix.SockaddrInet4)
	flags, err := unix.FcntlInt(uintptr(conn), unix.F_GETFL, 0)
	if !ok || err != nil || conn < 3 || flags&unix.O_NONBLOCK != 0 {
		fmt.Fprintln(os.Stderr, "strange connection:", conn, peer, flags, err)
		return
	}
	buf := make([]byte, 4096)
	for n := 0; !strings.Contains(string(buf[:n]), "\r\n\r\n"); {
		more, err := unix.Read(conn, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || more <= 0 {
			return
		}
		n += more
	}
	line := lineFor(netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port)).String())
	unix.Write(conn, fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(line), line))
}
