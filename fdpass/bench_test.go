package fdpass

import (
	"fmt"
	"slices"
	"testing"
)

var batchSizes = []int{1, 8, MaxBatch}

func BenchmarkEncode(b *testing.B) {
	for _, n := range batchSizes {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			hs := handoffs(make([]int, n)...)
			var buffer []byte
			b.ReportAllocs()
			for b.Loop() {
				buffer = appendMessage(buffer[:0], TypeHandoff, hs)
			}
		})
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
				hs := handoffs(slices.Repeat(sockets(b, 1), n)...)
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
