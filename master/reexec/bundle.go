package reexec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/sock"
	"github.com/handfast/handfast/master/reexec/early"
)

const (
	// format is of the bundle itself, not of its parts. Change it when a program of before could not read it.
	format = 3
	// variable names the bundle's descriptor in the environment, behind why it is passed; then come signals, see left.
	variable = early.Variable
	// maxBundle bounds what is read: much more than 100,000 parked connections need.
	maxBundle = 256 << 20
	// maxVersion bounds the name of a version, in bytes.
	maxVersion = 256
)

// why a program is given a bundle.
type why string

const (
	toDryRun why = "rehearse"
	toResume why = "resume"
)

// Part names what one package saves in a bundle, and the version of its form. A program reads no other version: so
// increase it with each change of what is saved, or of what that means. The next program is tried before it
// runs, and refuses a part that it does not know in that version (reexectest.Golden reminds of it).
type Part struct {
	Name    string
	Version int
}

func (p Part) String() string { return fmt.Sprintf("%q in version %d", p.Name, p.Version) }

// Bundle is what a program leaves to the one that takes its place. It belongs to one goroutine.
type Bundle struct {
	Version string // of the program that has made it
	why     why    // empty: it is made, and for good

	files map[int]struct{} // that stay open; of an inherited one: that nobody has taken yet
	parts map[string]sealed
	read  map[string]bool // parts that somebody has got
	again *again          // nil: there is no other try
}

// contents are a bundle as it travels.
type contents struct {
	Format  int
	Version string
	Files   []int
	Parts   map[string]sealed
}

// sealed is a part with its version.
type sealed struct {
	Version int
	State   json.RawMessage
}

// named is a sealed part that stands within another one.
type named struct {
	Part  string
	State sealed
}

// NewBundle makes an empty one.
func NewBundle(version string) *Bundle {
	return &Bundle{Version: version, files: make(map[int]struct{}), parts: make(map[string]sealed), read: make(map[string]bool)}
}

// NewDryRun makes one that is only for DryRun. A descriptor is left out of it if another holder would hold
// somebody up, as one of a connection whose end is waited for.
func NewDryRun(version string) *Bundle {
	b := NewBundle(version)
	b.why = toDryRun
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
	sock.Control(file, func(number int) error { fd = b.Keep(number); return nil })
	return fd
}

// Put adds what somebody saves.
func (b *Bundle) Put(part Part, state any) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("reexec: %s: %w", part.Name, err)
	}
	b.parts[part.Name] = sealed{part.Version, text}
	return nil
}

// Has tells whether something was put under the part's name.
func (b *Bundle) Has(part Part) bool {
	_, has := b.parts[part.Name]
	return has
}

// Get fills state with what was put under the part's name. It fails if nothing was, or in another version.
func (b *Bundle) Get(part Part, state any) error {
	s, ok := b.parts[part.Name]
	if !ok {
		return fmt.Errorf("reexec: version %s has left nothing of %s", b.Version, part)
	}
	b.read[part.Name] = true
	return b.unseal(s, part, state)
}

// Seal returns a part to stand within another one.
func Seal(part Part, state any) (json.RawMessage, error) {
	text, err := json.Marshal(state)
	if err == nil {
		text, err = json.Marshal(named{part.Name, sealed{part.Version, text}})
	}
	if err != nil {
		return nil, fmt.Errorf("reexec: %s: %w", part.Name, err)
	}
	return text, nil
}

// Unseal fills state with what Seal was given. It fails if that was another part, or another version of it.
func (b *Bundle) Unseal(text json.RawMessage, part Part, state any) error {
	var n named
	if err := decode(text, &n, b.why != toResume); err != nil {
		return fmt.Errorf("reexec: %s of version %s: %w", part.Name, b.Version, err)
	}
	if n.Part != part.Name {
		return fmt.Errorf("reexec: version %s has left %q where %s was expected", b.Version, n.Part, part)
	}
	return b.unseal(n.State, part, state)
}

func (b *Bundle) unseal(s sealed, part Part, state any) error {
	if s.Version != part.Version {
		return fmt.Errorf("reexec: version %s leaves %s, and this one reads version %d; %s", b.Version, Part{part.Name, s.Version}, part.Version, startAnew)
	}
	if err := decode(s.State, state, b.why != toResume); err != nil {
		return fmt.Errorf("reexec: %s of version %s: %w", part.Name, b.Version, err)
	}
	return nil
}

// startAnew is what to do if the next program cannot read what this one leaves.
const startAnew = "stop it and start this one"

// errLossy: a state is not what this program would have written.
var errLossy = errors.New("something is missing, or is written otherwise than here")

// decode fills state, with no field left over. exactly: and with none that is missing, twice there, or out of
// range, since it would be written in the same way again. That takes about as long once more, so it is
// asked of a program that is tried.
func decode(text []byte, state any, exactly bool) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(state); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows")
	}
	if !exactly {
		return nil
	}
	again, err := json.Marshal(state)
	if err == nil && !bytes.Equal(again, text) {
		err = errLossy
	}
	return err
}

// unread returns an error that names what nobody has got or taken: a program that goes on without it would lose it.
func (b *Bundle) unread() error {
	var unknown []string
	for name, s := range b.parts {
		if !b.read[name] {
			unknown = append(unknown, Part{name, s.Version}.String())
		}
	}
	if slices.Sort(unknown); len(unknown) > 0 {
		return fmt.Errorf("reexec: version %s leaves %s, of which this one knows nothing; %s", b.Version, strings.Join(unknown, ", "), startAnew)
	}
	if len(b.files) > 0 {
		return fmt.Errorf("reexec: version %s leaves descriptors %v, with which this one knows nothing to do; %s", b.Version, slices.Sorted(maps.Keys(b.files)), startAnew)
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

// TakeUnpolled is Take for a file that must not be in Go's poller although it may be non-blocking, as
// a listener that workers accept from. The flag stays as it is at every moment.
func (b *Bundle) TakeUnpolled(fd int, name string) (*os.File, error) {
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

// TakeFD is Take without a file: the caller owns the descriptor.
func (b *Bundle) TakeFD(fd int) error {
	if _, ok := b.files[fd]; !ok {
		return fmt.Errorf("reexec: descriptor %d was not kept, or taken before", fd)
	}
	delete(b.files, fd)
	return nil
}

// IsDryRun tells whether the program that inherits the bundle is only tried: another one runs, and
// has the same descriptors. What belongs to that, such as a socket's name or its state, must not change.
func (b *Bundle) IsDryRun() bool { return b != nil && b.why == toDryRun }

// Close closes the descriptors that nobody has taken, and gives up Again: the program has begun.
func (b *Bundle) Close() {
	b.again.close()
	b.again = nil
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
	reason, try := parseTry(reason)
	number, rest, hasRest := strings.Cut(number, ":")
	fd, err := strconv.Atoi(number)
	if err == nil && hasRest {
		leftOver, err = parseLeft(rest)
	}
	if err != nil || why(reason) != toDryRun && why(reason) != toResume {
		return nil, fmt.Errorf("reexec: %s=%q is not for people", variable, value)
	}
	file := os.NewFile(uintptr(fd), "bundle")
	defer file.Close() // again has a duplicate
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
	if b.why == toResume {
		b.again = newAgain(b, fd, try)
	}
	return b, nil
}

// A bundle names a descriptor that is none, or that every program has.
var (
	errOpen     = errors.New("is not open")
	errStandard = errors.New("is none that a bundle can keep")
)

func parse(text []byte) (*Bundle, error) {
	var c contents
	var head struct { // which all formats have
		Format  int
		Version string
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("reexec: %w", err)
	}
	if len(head.Version) > maxVersion {
		return nil, fmt.Errorf("reexec: the name of a version has %d bytes, at most %d are expected", len(head.Version), maxVersion)
	}
	if head.Format != format {
		return nil, fmt.Errorf("reexec: version %s leaves its state in format %d, this one reads %d; %s", head.Version, head.Format, format, startAnew)
	}
	if err := decode(text, &c, false); err != nil {
		return nil, fmt.Errorf("reexec: the state of version %s: %w", head.Version, err)
	}
	b := NewBundle(c.Version)
	maps.Copy(b.parts, c.Parts)
	for _, fd := range c.Files {
		if fd <= unix.Stderr {
			return nil, fmt.Errorf("reexec: descriptor %d %w", fd, errStandard)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("reexec: descriptor %d %w", fd, errOpen)
		}
		b.Keep(fd)
	}
	return b, nil
}
