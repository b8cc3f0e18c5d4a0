package worker_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/worker"
)

// sourceFile returns a file with this content.
func sourceFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	fdtest.Check(t, os.WriteFile(name, data, 0o600))
	f, err := os.Open(name)
	fdtest.Check(t, err)
	return closing(t, f)
}

// sourceNet returns a connection of package net on which this arrives.
func sourceNet(t testing.TB, data []byte) *net.TCPConn {
	t.Helper()
	source, writer := ordinary(t, anyPort)
	go send(writer, data)
	return source
}

// sourceHandedOff is sourceNet with a handed-off connection.
func sourceHandedOff(t testing.TB, data []byte) *worker.Conn {
	t.Helper()
	source, writer := handedOff(t)
	go send(writer, data)
	return source
}

// send ends when the test does, if not before.
func send(c *net.TCPConn, data []byte) {
	c.Write(data)
	c.CloseWrite()
}

// all reads a connection to its end.
func all(c net.Conn) <-chan []byte {
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(c)
		got <- b
	}()
	return got
}

// passed returns what io.Copy passes to the destination's ReadFrom: not always the
// source itself.
func passed(source io.Reader) io.Reader {
	var c catcher
	io.Copy(&c, source)
	return c.source
}

type catcher struct {
	io.Writer
	source io.Reader
}

func (c *catcher) ReadFrom(r io.Reader) (int64, error) {
	c.source = r
	return 0, nil
}

// embedded is a connection that reads otherwise than the kernel would.
type embedded struct{ *net.TCPConn }

func (e embedded) Read(b []byte) (int, error) {
	n, err := e.TCPConn.Read(b)
	copy(b, bytes.ToUpper(b[:n]))
	return n, err
}

// TestZeroCopy: the kernel moves all that it can, everything else is copied, and it all
// arrives.
func TestZeroCopy(t *testing.T) {
	fdtest.NoLeaks(t)
	data := pattern(1 << 20)
	for _, test := range []struct {
		name   string
		source func(*testing.T) io.Reader
		done   bool
		want   []byte
	}{
		{"file", func(t *testing.T) io.Reader { return sourceFile(t, data) }, true, data},
		{"file from io.Copy", func(t *testing.T) io.Reader { return passed(sourceFile(t, data)) }, true, data},
		{"empty file", func(t *testing.T) io.Reader { return sourceFile(t, nil) }, true, nil},
		{"part of a file", func(t *testing.T) io.Reader {
			f := sourceFile(t, data)
			f.Seek(10, io.SeekStart)
			return io.LimitReader(f, 1000)
		}, true, data[10:1010]},
		{"file without sendfile", func(t *testing.T) io.Reader {
			f, err := os.Open("/proc/self/comm") // seq_read: no splice_read
			fdtest.Check(t, err)
			return closing(t, f)
		}, false, comm(t)},
		{"pipe", func(t *testing.T) io.Reader {
			r, w, err := os.Pipe()
			fdtest.Check(t, err)
			closing(t, r)
			go func() { w.Write(data); w.Close() }()
			return r
		}, false, data},
		{"net", func(t *testing.T) io.Reader { return sourceNet(t, data) }, true, data},
		{"net from io.Copy", func(t *testing.T) io.Reader { return passed(sourceNet(t, data)) }, true, data},
		{"part of net", func(t *testing.T) io.Reader { return io.LimitReader(sourceNet(t, data), 1000) }, true, data[:1000]},
		{"handed off", func(t *testing.T) io.Reader { return sourceHandedOff(t, data) }, true, data},
		{"part of handed off", func(t *testing.T) io.Reader { return io.LimitReader(sourceHandedOff(t, data), 1000) }, true, data[:1000]},
		{"embedded", func(t *testing.T) io.Reader {
			return io.LimitReader(embedded{sourceNet(t, []byte("abc"))}, 3)
		}, false, []byte("ABC")},
		{"bytes", func(t *testing.T) io.Reader { return bytes.NewReader(data) }, false, data},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, client := handedOff(t)
			got := all(client)
			source := test.source(t)
			n, done, err := worker.ZeroCopy(c, source)
			if done != test.done || !done && n != 0 {
				t.Errorf("done is %v after %d bytes, %v; want %v", done, n, err, test.done)
			}
			if !done {
				n, err = c.ReadFrom(source)
			}
			if n != int64(len(test.want)) || err != nil {
				t.Errorf("%d bytes, %v; want %d", n, err, len(test.want))
			}
			c.Close()
			if !bytes.Equal(fdtest.Receive(t, "content", got), test.want) {
				t.Error("other bytes arrived")
			}
		})
	}
}

func comm(t *testing.T) []byte {
	t.Helper()
	name, err := os.ReadFile("/proc/self/comm")
	fdtest.Check(t, err)
	return name
}

// io.Copy finds the way, whichever of the two is a handed-off connection. More than
// a pipe and the socket buffers hold goes through.
func TestCopy(t *testing.T) {
	fdtest.NoLeaks(t)
	data := pattern(8 << 20)
	sources := map[string]func(testing.TB, []byte) io.Reader{
		"file":       func(t testing.TB, b []byte) io.Reader { return sourceFile(t, b) },
		"net":        func(t testing.TB, b []byte) io.Reader { return sourceNet(t, b) },
		"handed off": func(t testing.TB, b []byte) io.Reader { return sourceHandedOff(t, b) },
	}
	for name, source := range sources {
		for _, to := range []string{"handed off", "net", "buffer"} {
			if to == "net" && name != "handed off" {
				continue // is not ours
			}
			t.Run(name+" to "+to, func(t *testing.T) {
				var dst io.WriteCloser
				var got <-chan []byte
				switch to {
				case "handed off":
					c, client := handedOff(t)
					dst, got = c, all(client)
				case "net":
					c, client := ordinary(t, anyPort)
					dst, got = c, all(client)
				default:
					r, w := io.Pipe()
					c := make(chan []byte, 1)
					go func() { b, _ := io.ReadAll(r); c <- b }()
					dst, got = w, c
				}
				n, err := io.Copy(dst, source(t, data))
				if n != int64(len(data)) || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				dst.Close()
				if !bytes.Equal(fdtest.Receive(t, "content", got), data) {
					t.Error("other bytes arrived")
				}
			})
		}
	}
}

// The system call that failed shows that io.Copy uses it.
func TestCopyErrorNamesSystemCall(t *testing.T) {
	fdtest.NoLeaks(t)
	ours, oursClient := handedOff(t)
	reset(t, ours, oursClient)
	theirs, theirsClient := ordinary(t, anyPort)
	reset(t, theirs, theirsClient)
	for _, test := range []struct {
		want   string
		dst    io.Writer
		source io.Reader
	}{
		{"sendfile", ours, sourceFile(t, []byte("x"))},
		{"splice", ours, sourceNet(t, []byte("x"))},
		{"splice", ours, sourceHandedOff(t, []byte("x"))},
		{"splice", theirs, sourceHandedOff(t, []byte("x"))},
		{"write", ours, struct{ io.Reader }{strings.NewReader("x")}},
	} {
		_, err := io.Copy(test.dst, test.source)
		var call *os.SyscallError
		if !errors.As(err, &call) || call.Syscall != test.want || !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%T from %T: %v; want a failure of %s", test.dst, test.source, err, test.want)
		}
	}
}

// A limit is a limit also of what is taken from the source, and says what is left.
func TestLimitedReader(t *testing.T) {
	fdtest.NoLeaks(t)
	for name, source := range map[string]io.Reader{
		"file":       sourceFile(t, []byte("abcdef")),
		"net":        sourceNet(t, []byte("abcdef")),
		"handed off": sourceHandedOff(t, []byte("abcdef")),
		"other":      struct{ io.Reader }{strings.NewReader("abcdef")},
	} {
		c, client := handedOff(t)
		for _, step := range []struct {
			limit, left int64
			want        string
		}{{0, 0, ""}, {2, 0, "ab"}, {10, 6, "cdef"}} {
			limited := &io.LimitedReader{R: source, N: step.limit}
			n, err := c.ReadFrom(limited)
			if n != int64(len(step.want)) || limited.N != step.left || err != nil {
				t.Errorf("%s: %d bytes, %d left, %v; want %q and %d", name, n, limited.N, err, step.want, step.left)
			}
			read(t, client, step.want)
		}
	}
}

// A client that reads slowly meets the write deadline; the count is what it gets.
func TestZeroCopySlowClient(t *testing.T) {
	fdtest.NoLeaks(t)
	data := pattern(16 << 20)
	for name, source := range map[string]io.Reader{
		"file": sourceFile(t, data),
		"net":  sourceNet(t, data),
	} {
		c, client := handedOff(t)
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		limited := &io.LimitedReader{R: source, N: 1 << 40}
		n, err := c.ReadFrom(limited)
		if ne, ok := err.(net.Error); !ok || !ne.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		if n >= int64(len(data)) || limited.N != 1<<40-n {
			t.Errorf("%s: %d bytes sent, %d left", name, n, limited.N)
		}
		if f, ok := source.(*os.File); ok { // and the rest can follow
			c.SetWriteDeadline(time.Time{})
			got := all(client)
			rest, err := c.ReadFrom(f)
			if n += rest; err != nil || n != int64(len(data)) {
				t.Errorf("the rest: %d bytes, %v", rest, err)
			}
			c.Close()
			if !bytes.Equal(fdtest.Receive(t, "content", got), data) {
				t.Error("other bytes arrived")
			}
			continue
		}
		got := all(client)
		c.Close()
		if !bytes.Equal(fdtest.Receive(t, "content", got), data[:n]) {
			t.Errorf("%s: other bytes arrived", name)
		}
	}
}

// A silent source is left at its read deadline, and when it is closed.
func TestSpliceFromSilentSource(t *testing.T) {
	fdtest.NoLeaks(t)
	type source interface {
		io.Reader
		SetReadDeadline(time.Time) error
		Close() error
	}
	ours, _ := handedOff(t)
	theirs, _ := ordinary(t, anyPort)
	for _, source := range []source{ours, theirs} {
		c, _ := handedOff(t)
		source.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if n, err := c.ReadFrom(source); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%T: %d bytes, %v; want a timeout", source, n, err)
		}
		source.SetReadDeadline(time.Time{})
		failed := make(chan error)
		go func() { _, err := c.ReadFrom(source); failed <- err }()
		source.Close()
		if err := fdtest.Receive(t, "splice", failed); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%T: %v; want ErrClosed", source, err)
		}
	}
}
