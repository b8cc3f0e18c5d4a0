package main

import (
	"fmt"

	"github.com/handfast/handfast/worker"
)

func playRaw() int {
	ln, err := worker.Listen("")
	if err != nil {
		return 1
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 0
		}
		go func() {
			defer conn.Close()
			first := make([]byte, 64<<10)
			n, _ := conn.Read(first)
			answer := lineFor(conn.RemoteAddr().String())
			for kind, value := range conn.(*worker.Conn).ProxyTLVs() {
				answer += fmt.Sprintf("TLV %#x %q\n", kind, value)
			}
			fmt.Fprintf(conn, "%s%s", answer, first[:n])
		}()
	}
}
