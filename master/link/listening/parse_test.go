package listening

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
)

func TestWatches(t *testing.T) {
	const info = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1059\n" +
		"tfd:        3 events:        0 data:                3  pos:0 ino:1ce13 sdev:9\n" +
		"tfd:       14 events: 80000019 data: 7f0d1c2a3b4c0001  pos:0 ino:1ce14 sdev:9\n"
	for inode, want := range map[uint64]bool{0x1ce13: false, 0x1ce14: true, 0x1059: false, 9: false, 0: false} {
		if got := watches(info, inode); got != want {
			t.Errorf("%x: %v", inode, got)
		}
	}
}

func FuzzWatches(f *testing.F) {
	f.Add("tfd:        3 events:       19 data:                3  pos:0 ino:1ce13 sdev:9\n", uint64(0x1ce13))
	f.Add("tfd: ino: events:", uint64(0))
	f.Fuzz(func(t *testing.T, info string, inode uint64) {
		if watches(info, inode) && !watches("tfd: 1 events: 1 data: 1 pos:0 ino:0 sdev:9\n"+info, inode) {
			t.Error("another line changes the answer")
		}
	})
}

func FuzzCall(f *testing.F) {
	f.Add("running\n", uint8(3))
	f.Add("-1 0x7ffd 0x7f\n", uint8(3))
	f.Add("7 0x7f3ae43f2010 0x2 0xffffffff 0x0 0x0 0x0 0x7ffd2d1dd5f8 0x7f3ae4a0d9ee\n", uint8(3))
	f.Add("270 0x4 0x7f3ae43f2010 0x0 0x0 0x0 0x0 0x7ffd2d1dd5f8 0x7f3ae4a0d9ee\n", uint8(3))
	f.Fuzz(func(t *testing.T, text string, fd uint8) {
		c, ok := parseCall(text)
		if !ok {
			return
		}
		largest := 0
		none := c.waits(int(fd), func(_ uint64, buf []byte) int {
			largest = max(largest, len(buf))
			return 0
		})
		if largest > 8*maxWatched {
			t.Errorf("reads %d bytes", largest)
		}
		if accepts := c.number == sock.CallAccept || c.number == unix.SYS_ACCEPT4; none && !accepts {
			t.Error("waits on what was not read")
		}
	})
}
