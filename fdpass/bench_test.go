package fdpass

import (
	"fmt"
	"slices"
	"testing"
)

var batchSizes = []int{1, 8, MaxBatch}

// batch returns n connections of IPv4 clients, all with one descriptor.
func batch(n, fd int) []Handoff {
	return slices.Repeat([]Handoff{{FD: fd, Client: clients[0].Client}}, n)
}

func BenchmarkEncode(b *testing.B) {
	for _, n := range batchSizes {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			hs := batch(n, 0)
			var buffer []byte
			b.ReportAllocs()
			for b.Loop() {
				buffer = appendMessage(buffer[:0], TypeHandoff, hs, false)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, n := range batchSizes {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			in, m := arrived(n)
			b.ReportAllocs()
			for b.Loop() {
				m.Handoffs = m.Handoffs[:0]
				if err := in.parse(&m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// arrived returns a batch as it was received, and a message that has room for it.
func arrived(n int) (*incoming, Message) {
	hs := batch(n, 0)
	in := newIncoming()
	in.fds = make([]int, n)
	in.n = copy(in.body[:], appendMessage(nil, TypeHandoff, hs, false))
	return in, Message{Handoffs: make([]Handoff, 0, n)}
}

// TestParseAllocates nothing, except for zones of link-local addresses.
func TestParseAllocates(t *testing.T) {
	in, m := arrived(MaxBatch)
	if n := testing.AllocsPerRun(100, func() {
		m.Handoffs = m.Handoffs[:0]
		if err := in.parse(&m); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// BenchmarkSendReceive is a message's whole journey, and the closing of the copies
// that were received. The careful way is the one near the limit of open files.
func BenchmarkSendReceive(b *testing.B) {
	for _, near := range []bool{false, true} {
		for _, n := range batchSizes {
			b.Run(fmt.Sprintf("careful=%v/batch=%d", near, n), func(b *testing.B) {
				ours, theirs := pair(b)
				theirs.in.near = near
				hs := batch(n, sockets(b, 1)[0])
				var m Message
				b.ReportAllocs()
				for b.Loop() {
					send(b, ours, TypeHandoff, hs)
					if err := theirs.Receive(&m); err != nil {
						b.Fatal(err)
					}
					CloseHandoffs(m.Handoffs)
				}
			})
		}
	}
}
