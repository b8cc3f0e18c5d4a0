package fdpass

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// FuzzReceive: whatever bytes come with however many descriptors, Receive ends with
// a message, ErrMalformed or io.EOF, no descriptor leaks, and what follows is
// received.
func FuzzReceive(f *testing.F) {
	for _, b := range messages() {
		for _, n := range []byte{0, 1, 3, MaxBatch, MaxBatch + 1, 253} {
			f.Add(b, n, n == 3)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, fds byte, near bool) {
		if len(body) > 64<<10 || fds > 253 {
			t.Skip("the kernel does not take it")
		}
		fdtest.NoLeaks(t)
		raw, conn := rawPair(t)
		defer unix.Close(raw)
		conn.in.near, conn.in.careful = near, near
		fd := sockets(t, 1)[0]
		before := len(fdtest.OpenFiles())
		sendRaw(t, raw, body, slices.Repeat([]int{fd}, int(fds)))
		var m Message
		switch err := conn.Receive(&m); {
		case err == nil:
			if m.Type == TypeSlots {
				if fds != 0 || m.Lost != 0 || len(m.Handoffs) > 0 || m.Slots != int(binary.BigEndian.Uint32(body[headerSize+slotsAt:])) {
					t.Errorf("%d descriptors with %x are %+v", fds, body, m)
				}
			} else if m.Type == TypeReport {
				if fds != 0 || m.Lost != 0 || len(m.Handoffs) > 0 || len(body) > maxMessage || m.Report != parseReport(body[headerSize:]) {
					t.Errorf("%d descriptors with %x are %+v", fds, body, m)
				}
			} else if _, hs, err := parseAll(body); err != nil || len(hs) != int(fds) || len(m.Handoffs) != len(hs) || m.Lost != 0 {
				t.Errorf("%d descriptors with %x are %+v, parsed alone: %v, error %v", fds, body, m, hs, err)
			}
		case err == io.EOF && len(body) == 0 && fds == 0:
		case !errors.Is(err, ErrMalformed), len(m.Handoffs) > 0:
			t.Errorf("%d descriptors with %x are %+v, error %v", fds, body, m, err)
		}
		CloseHandoffs(m.Handoffs)
		if after := len(fdtest.OpenFiles()); after != before {
			t.Errorf("%d descriptors with %x: %d are open, %d before", fds, body, after, before)
		}
		sendRaw(t, raw, appendMessage(nil, TypeReturn, numbered(0, 7, 1), false), []int{fd})
		wantPorts(t, conn, 7, 7)
	})
}
