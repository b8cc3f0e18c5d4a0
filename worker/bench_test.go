package worker_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// One op is one connection: handed off in a batch, received, made a net.Conn,
// closed. The two benchmarks differ in how it is made one. Always the same socket
// is handed off, so that nothing of TCP's own is measured.

func BenchmarkAccept(b *testing.B) {
	perConnection(b, func(b *testing.B, file *os.File) func() net.Conn {
		ln, err := worker.Config{Mailbox: file, ManualReady: true}.Listen()
		fdtest.Check(b, err)
		closing(b, ln)
		return func() net.Conn {
			c, err := ln.Accept()
			fdtest.Check(b, err)
			return c
		}
	})
}

func BenchmarkFileConn(b *testing.B) {
	perConnection(b, func(b *testing.B, file *os.File) func() net.Conn {
		mailbox, err := fdpass.NewConn(file)
		fdtest.Check(b, err)
		closing(b, mailbox)
		var m fdpass.Message
		var queue []fdpass.Handoff
		b.Cleanup(func() { fdpass.CloseHandoffs(queue) })
		return func() net.Conn {
			if len(queue) == 0 {
				fdtest.Check(b, mailbox.Receive(&m))
				queue = m.Handoffs
			}
			f := os.NewFile(uintptr(queue[0].FD), "tcp")
			queue = queue[1:]
			c, err := net.FileConn(f)
			fdtest.Check(b, err)
			f.Close()
			return c
		}
	})
}

func perConnection(b *testing.B, acceptor func(*testing.B, *os.File) func() net.Conn) {
	for _, size := range []int{1, fdpass.MaxBatch} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			master, file, err := fdpass.Pair()
			fdtest.Check(b, err)
			closing(b, master)
			accept := acceptor(b, file)
			server, client := ordinary(b, anyPort)
			fd := fdtest.Duplicate(b, server)
			defer fdpass.CloseHandoffs([]fdpass.Handoff{{FD: fd}})
			batch := make([]fdpass.Handoff, size)
			for i := range batch {
				batch[i] = fdpass.Handoff{FD: fd, Client: addrPort(client.LocalAddr())}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%size == 0 {
					fdtest.Check(b, master.TrySend(fdpass.TypeHandoff, batch))
				}
				c := accept()
				c.LocalAddr()
				c.Close()
			}
		})
	}
}
