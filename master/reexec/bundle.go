package reexec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// format changes when a program of before could not read what a bundle has.
	format = 2
	// variable names the bundle's descriptor in the environment, behind why it is passed.
	variable = "HANDFAST_BUNDLE"
	// maxBundle bounds what is read: much more than 100,000 parked connections need.
	maxBundle = 256 << 20
)

// why a program is given a bundle.
type why string

const (
	toRehearse why = "rehearse"
	toResume   why = "resume"
)

// Bundle is what a program leaves to the one that takes its place. It belongs to one goroutine.
type Bundle struct {
	Version string // of the program that has made it
	why     why    // empty: it is made, and for good

	files map[int]struct{} // that stay open; of an inherited one: that nobody has taken yet
	parts map[string]json.RawMessage
}

// contents are a bundle as it travels.
type contents struct {
	Format  int
	Version string
	Files   []int
	Parts   map[string]json.RawMessage
}

// NewBundle makes an empty one.
func NewBundle(version string) *Bundle {
	return &Bundle{Version: version, files: make(map[int]struct{}), parts: make(map[string]json.RawMessage)}
}

// NewRehearsal makes one that is only for Rehearse. Who must not be held up while there is another
// holder of a descriptor, as who waits for the end of a connection, leaves it out.
func NewRehearsal(version string) *Bundle {
	b := NewBundle(version)
	b.why = toRehearse
	return b
}

// Keep has a descriptor stay open, which the caller goes on owning, and returns it.
func (b *Bundle) Keep(fd int) int {
	b.files[fd] = struct{}{}
	return fd
}

// KeepFile is Keep for a file. A closed one is -1.
func (b *Bundle) KeepFile(file syscall.Conn) int {
	fd := -1
	if raw, err := file.SyscallConn(); err == nil {
		raw.Control(func(number uintptr) { fd = b.Keep(int(number)) })
	}
	return fd
}

// Put adds what somebody saves, under their name.
func (b *Bundle) Put(name string, state any) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("reexec: %s: %w", name, err)
	}
	b.parts[name] = text
	return nil
}

// Get fills state with what was put under a name, and fails if nothing was.
func (b *Bundle) Get(name string, state any) error {
	text, ok := b.parts[name]
	if !ok {
		return fmt.Errorf("reexec: version %s has left nothing of %q", b.Version, name)
	}
	if err := json.Unmarshal(text, state); err != nil {
		return fmt.Errorf("reexec: %s of version %s: %w", name, b.Version, err)
	}
	return nil
}

// Take returns a descriptor that was kept, once; the caller owns the file.
func (b *Bundle) Take(fd int, name string) (*os.File, error) {
	if err := b.TakeFD(fd); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// TakeBehind is Take for a file that must not be in Go's poller although it may be non-blocking, as
// a listener that workers accept from. The flag stays as it is at every moment.
func (b *Bundle) TakeBehind(fd int, name string) (*os.File, error) {
	if err := b.TakeFD(fd); err != nil {
		return nil, err
	}
	// os.NewFile looks at the flag; so it is shown something else, in whose place the file then comes.
	number, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("reexec: %w", os.NewSyscallError("eventfd", err))
	}
	file := os.NewFile(uintptr(number), name)
	err = unix.Dup3(fd, number, unix.O_CLOEXEC)
	unix.Close(fd)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("reexec: %w", os.NewSyscallError("dup3", err))
	}
	return file, nil
}

// TakeFD is Take for who needs no file: the caller owns the descriptor.
func (b *Bundle) TakeFD(fd int) error {
	if _, ok := b.files[fd]; !ok {
		return fmt.Errorf("reexec: descriptor %d was not kept, or taken before", fd)
	}
	delete(b.files, fd)
	return nil
}

// IsRehearsal tells whether the program that inherits the bundle is only tried: another one runs, and
// has the same descriptors. What belongs to that, such as a socket's name or its state, must not change.
func (b *Bundle) IsRehearsal() bool { return b != nil && b.why == toRehearse }

// Close closes the descriptors that nobody has taken.
func (b *Bundle) Close() {
	for fd := range b.files {
		unix.Close(fd)
	}
	clear(b.files)
}

// write returns the bundle as a file in memory. The caller owns it.
func (b *Bundle) write() (*os.File, error) {
	text, err := json.Marshal(contents{format, b.Version, slices.Sorted(maps.Keys(b.files)), b.parts})
	if err != nil {
		return nil, fmt.Errorf("reexec: %w", err)
	}
	if len(text) > maxBundle {
		return nil, fmt.Errorf("reexec: the state has %d bytes, at most %d can be passed on; try again when workers have read what waits for them", len(text), maxBundle)
	}
	fd, err := unix.MemfdCreate("handfast bundle", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("reexec: %w", os.NewSyscallError("memfd_create", err))
	}
	file := os.NewFile(uintptr(fd), "bundle")
	if _, err = file.Write(text); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("reexec: %w", err)
	}
	return file, nil
}

// Inherited returns what the program before has left to this one: nil if it was started in the
// ordinary way. Call it once, before the process opens descriptors or starts others.
func Inherited() (*Bundle, error) {
	value, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(variable) // our children have nothing to do with it
	reason, number, _ := strings.Cut(value, ":")
	var fd int
	if n, err := fmt.Sscanf(number, "%d", &fd); n != 1 || err != nil || why(reason) != toRehearse && why(reason) != toResume {
		return nil, fmt.Errorf("reexec: %s=%q is not for people", variable, value)
	}
	file := os.NewFile(uintptr(fd), "bundle")
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxBundle))
	if err != nil {
		return nil, fmt.Errorf("reexec: %w", err)
	}
	b, err := parse(text)
	if err != nil {
		return nil, err
	}
	b.why = why(reason)
	for fd := range b.files {
		unix.CloseOnExec(fd)
	}
	return b, nil
}

// errOpen: a bundle names a descriptor that is none.
var errOpen = errors.New("is not open")

func parse(text []byte) (*Bundle, error) {
	var c contents
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("reexec: %w", err)
	}
	if c.Format != format {
		return nil, fmt.Errorf("reexec: version %s leaves its state in format %d, this one reads %d; stop it and start this one", c.Version, c.Format, format)
	}
	b := NewBundle(c.Version)
	if c.Parts != nil {
		b.parts = c.Parts
	}
	for _, fd := range c.Files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("reexec: descriptor %d %w", fd, errOpen)
		}
		b.Keep(fd)
	}
	return b, nil
}
