package seccomp

import (
	"testing"
	"unsafe"
)

// TestParseInterest: the data of an entry may be anything: Netty's is a number, Go's a pointer.
func TestParseInterest(t *testing.T) {
	const text = "pos:\t0\nflags:\t02\n" +
		"tfd:        5 events:       19 data:                5  pos:0 ino:1ce13 sdev:9\n" +
		"tfd:        6 events: 80002019 data: ffffffff00000006  pos:0 ino:1ce14 sdev:9\n"
	if got, ok := parseInterest(text, 6, 0x1ce14); !ok || got.events != 0x80002019 || got.data != 0xffffffff00000006 {
		t.Errorf("%+v, %v", got, ok)
	}
	event := interest{data: 0xffffffff00000006}.event()
	if *(*uint64)(unsafe.Pointer(&event.Fd)) != 0xffffffff00000006 {
		t.Errorf("%+v", event)
	}
	for fd, inode := range map[int]uint64{5: 0x1ce14, 6: 0x1ce13, 7: 0x1ce14} {
		if got, ok := parseInterest(text, fd, inode); ok {
			t.Errorf("%d: %+v", fd, got)
		}
	}
}
