package acceptinject

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/handfast/handfast/master/link/seccomp"
	"golang.org/x/sys/unix"
)

// TestWriteTooLate: the memory of a caller that waits no more is not written to: its number may be another process's.
func TestWriteTooLate(t *testing.T) {
	name, want := []byte("12345678"), make([]byte, 8)
	for _, waits := range []bool{false, true} {
		buf, size := make([]byte, 8), uint32(8)
		call := acceptCall{Caller: seccomp.Caller{TID: os.Getpid()}, name: uint64(uintptr(unsafe.Pointer(&buf[0]))), nameSize: uint64(uintptr(unsafe.Pointer(&size)))}
		errno := call.writeName(name, len(name), func() bool { return waits })
		if waits {
			want = name
		}
		if string(buf) != string(want) || (errno == 0) != waits {
			t.Errorf("waits %v: %q, %v", waits, buf, errno)
		}
	}
}

// TestDecoyIsEmptied: somebody else accepts from a decoy that blocks, between our look and our accept. It does not wait for
// the next one.
func TestDecoyIsEmptied(t *testing.T) {
	for _, family := range []uint16{unix.AF_INET, unix.AF_INET6} {
		d, err := openDecoy(family)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		accepted := make(chan error, 1)
		go func() {
			fd, err := d.accept()
			if err == nil {
				err = unix.Close(fd)
			}
			accepted <- err
		}()
		select {
		case err := <-accepted:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("accept waits")
		}
		first, second := d.acceptOne(), d.acceptOne()
		if first && second {
			t.Error("it goes on coming")
		}
	}
}

// TestWatch: what takes long is nudged until it ends, and not after that; what is short never is.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nudges := 0
		w := watch{nudge: func() { nudges++ }}
		took := func(d time.Duration, least, most int) {
			w.begin()
			time.Sleep(d)
			w.end()
			w.mu.Lock()
			defer w.mu.Unlock()
			if nudges < least || nudges > most {
				t.Errorf("%d nudges in %v, want %d to %d", nudges, d, least, most)
			}
			nudges = 0
		}
		short := func() {
			for range 10 {
				took(nudgeInterval/2, 0, 0)
			}
		}
		short()
		took(4*nudgeInterval, 2, 4)
		short()
		time.Sleep(4 * nudgeInterval)
		w.mu.Lock()
		defer w.mu.Unlock()
		if nudges != 0 || w.timer != nil {
			t.Errorf("%d nudges after the end", nudges)
		}
	})
}

// TestDecoyNudgeAndWakeup: both may happen at the same time. The race detector says whether they may.
func TestDecoyNudgeAndWakeup(t *testing.T) {
	d, err := openDecoy(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	came := make(chan struct{})
	go func() {
		defer close(came)
		for range 10 {
			d.nudge()
		}
	}()
	for range 10 {
		d.wakeAnew()
	}
	<-came
	d.clear()
}
