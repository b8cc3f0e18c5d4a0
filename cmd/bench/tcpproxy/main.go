// Command tcpproxy is a TCP proxy made of github.com/inetaf/tcpproxy, as a Go
// programmer would make a sticky one:
//
//	tcpproxy LISTEN WORKER...
package main

import (
	"hash/maphash"
	"log"
	"net"
	"os"

	"github.com/inetaf/tcpproxy"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: tcpproxy LISTEN WORKER...")
	}
	var proxy tcpproxy.Proxy
	proxy.AddRoute(os.Args[1], newSticky(os.Args[2:]))
	log.Fatal(proxy.Run())
}

var seed = maphash.MakeSeed()

// sticky sends a client, as known by its IP address, to the same worker each time.
type sticky []*tcpproxy.DialProxy

func newSticky(workers []string) sticky {
	var s sticky
	for _, address := range workers {
		s = append(s, tcpproxy.To(address))
	}
	return s
}

// HandleConn takes ownership of conn.
func (s sticky) HandleConn(conn net.Conn) {
	client, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	s[maphash.String(seed, client)%uint64(len(s))].HandleConn(conn)
}
