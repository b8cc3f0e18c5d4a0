package reexec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass/fdtest"
	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// script makes a program.
func script(t *testing.T, text string) Program {
	t.Helper()
	path := filepath.Join(t.TempDir(), "next")
	check(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	return Program{Path: path, Args: []string{path, "argument"}, Env: os.Environ()}
}

var pipePart = Part{"pipe", 7}

// kept is a bundle that keeps a pipe, and the pipe.
func kept(t *testing.T) (*Bundle, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	b := NewBundle("1.2.3")
	check(t, b.Put(pipePart, b.KeepFile(r)))
	return b, r
}

func try(t *testing.T, b *Bundle, p Program) error {
	r, err := b.DryRun(p)
	if err != nil {
		return err
	}
	return r.Wait(t.Context())
}

// TestDryRun: what a program says and how it ends decides, and it has the descriptors under the
// numbers that they have here, and no others.
func TestDryRun(t *testing.T) {
	b, r := kept(t)
	_, other := kept(t)
	for _, tt := range []struct{ script, want string }{
		{"echo something first; echo ready", ""},
		{"echo not yet", "is no handfast that can take over: not yet"},
		{"", "is no handfast that can take over"},
		{"echo no such flag >&2; exit 2", "ended with status 2: no such flag"},
		{"echo ready; exit 1", "ended with status 1"},
		{"kill -KILL $$", "was ended by signal killed"},
		{`test "$1" = argument && case $HANDFAST_BUNDLE in rehearse:*) echo ready;; esac`, ""},
		{fmt.Sprintf(`readlink /proc/self/fd/%d | grep -q pipe && echo ready`, r.Fd()), ""},
		{fmt.Sprintf(`test -e /proc/$$/fd/%d || echo ready`, other.Fd()), ""},
	} {
		err := try(t, b, script(t, tt.script))
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrDryRun) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.script, err, tt.want)
		}
	}
	if err := try(t, b, Program{Path: "/nowhere"}); !errors.Is(err, ErrDryRun) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// TestDryRunLater: the program has the descriptors as they were when DryRun returned, whatever becomes of them until it is
// started. Nothing of them is left open here.
func TestDryRunLater(t *testing.T) {
	fdtest.NoLeaks(t)
	b, r := kept(t)
	dryRun, err := b.DryRun(script(t, fmt.Sprintf(`readlink /proc/self/fd/%d | grep -q pipe && echo ready`, r.Fd())))
	check(t, err)
	r.Close()
	check(t, dryRun.Wait(t.Context()))
}

// Row A9: children that a dry run leaves hold all that is open, such as listeners. They end with it,
// whether they hold its output as well or not.
func TestDryRunLeavesNobody(t *testing.T) {
	for _, output := range []string{"", ">/dev/null 2>&1"} {
		b, r := kept(t)
		began := time.Now()
		dryRun, err := b.DryRun(script(t, fmt.Sprintf("(trap '' TERM; sleep 1000; true) %s & sleep 1000 %s & echo ready", output, output)))
		check(t, err)
		check(t, dryRun.Wait(t.Context()))
		if took := time.Since(began); took > dryRunTimeout/2 {
			t.Errorf("output %q: it took %v, as long as the children would live", output, took)
		}
		holders, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		name, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", r.Fd()))
		for _, holder := range holders {
			if to, _ := os.Readlink(holder); to == name && !strings.HasPrefix(holder, fmt.Sprintf("/proc/%d/", os.Getpid())) {
				t.Errorf("output %q: %s is open", output, holder)
			}
		}
	}
	b, _ := kept(t)
	err := try(t, b, script(t, `mkfifo $0.f; setsid sh -c 'echo >$0; exec sleep 3' $0.f & read line <$0.f; echo ready`))
	if !errors.Is(err, ErrDryRun) || !strings.Contains(err.Error(), "left its group") {
		t.Errorf("a daemon: %v", err)
	}
}

// TestExecFails: nothing has changed then.
func TestExecFails(t *testing.T) {
	b, r := kept(t)
	var before, after unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &before)
	var masks [2]unix.Sigset_t
	unix.PthreadSigmask(unix.SIG_BLOCK, nil, &masks[0])
	Lock.Lock()
	err := b.Exec(Program{Path: "/nowhere", Args: []string{"x"}})
	Lock.Unlock()
	unix.PthreadSigmask(unix.SIG_BLOCK, nil, &masks[1])
	unix.Getrlimit(unix.RLIMIT_NOFILE, &after)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if flags, err := unix.FcntlInt(r.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of a descriptor: %#x, %v", flags, err)
	}
	if before != after || masks[0] != masks[1] {
		t.Errorf("limit %v, was %v; mask %x, was %x", after, before, masks[1], masks[0])
	}
}

// TestBundle: what was put is there, and each descriptor once.
func TestBundle(t *testing.T) {
	b, r := kept(t)
	memory, err := b.write()
	check(t, err)
	defer memory.Close()
	duplicate, err := unix.FcntlInt(memory.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	check(t, err)
	t.Setenv(variable, strings.TrimPrefix(pass(toDryRun, duplicate), variable+"="))
	got, err := Inherited()
	check(t, err)
	if _, ok := os.LookupEnv(variable); ok {
		t.Error("children would believe that it is for them")
	}
	var fd int
	check(t, got.Get(pipePart, &fd))
	if fd != int(r.Fd()) || got.Version != "1.2.3" || !got.IsDryRun() {
		t.Errorf("descriptor %d of %s, dry run %v", fd, got.Version, got.IsDryRun())
	}
	if err := got.Get(Part{"another", 1}, &fd); err == nil || !strings.Contains(err.Error(), `1.2.3 has left nothing of "another" in version 1`) {
		t.Errorf("what is not there: %v", err)
	}
	check(t, got.TakeFD(fd))
	if _, err := got.Take(fd, "again"); err == nil {
		t.Error("a descriptor was taken twice")
	}
}

// TestTakeUnpolled: a non-blocking file stays so, and is not in the poller.
func TestTakeUnpolled(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fds[1])
	b := NewBundle("")
	b.Keep(fds[0])
	file, err := b.TakeUnpolled(fds[0], "socket")
	check(t, err)
	defer file.Close()
	if err := file.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("it is in the poller: %v", err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[1]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the other end: %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("it stays open across execve: %v", err)
	}
}

// TestInheritedNonsense: what somebody types, or an older version leaves, is an error.
func TestInheritedNonsense(t *testing.T) {
	for _, value := range []string{"", "resume", "resume:", "resume:x", "perform:3", "resume:1234567"} {
		t.Setenv(variable, value)
		if b, err := Inherited(); err == nil {
			t.Errorf("%q: %+v", value, b)
		}
	}
	for text, want := range map[string]string{
		"":                              "JSON",
		`{"Format":0}`:                  "stop it and start this one",
		`{"Format":2,"Version":"1"}`:    "version 1 leaves its state in format 2, this one reads 3; stop it",
		`{"Format":3,"Files":[999999]}`: "descriptor 999999 is not open",
		`{"Format":3,"Files":[2]}`:      "descriptor 2 is none that",
		`{"Format":3,"Files":[-1]}`:     "descriptor -1 is none that",
		`{"Format":3,"Listeners":[]}`:   `unknown field "Listeners"`,
		`{"Format":3} {}`:               "",
		`{"Format":3,"Parts":{"x":{"Version":1,"State":{},"Mode":1}}}`:       `unknown field "Mode"`,
		`{"Format":3,"Parts":{"x":{"Version":"1","State":{}}}}`:              "cannot unmarshal",
		`{"Format":3,"Version":"` + strings.Repeat("1", maxVersion+1) + `"}`: "257 bytes",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

type sample struct {
	Name  string
	Count uint8
	Inner json.RawMessage
}

// TestParts: a part is read in its version, and exactly as it would be written.
func TestParts(t *testing.T) {
	part := Part{"sample", 2}
	b := NewBundle("1.2.3")
	b.parts["sample"] = sealed{2, json.RawMessage(`{"Name":"a","Count":255,"Inner":{"x":[1]}}`)}
	var s sample
	check(t, b.Get(part, &s))
	if s.Name != "a" || s.Count != 255 || string(s.Inner) != `{"x":[1]}` {
		t.Errorf("%+v", s)
	}
	if err := b.Get(Part{"sample", 1}, &s); err == nil || !strings.Contains(err.Error(), `version 1.2.3 leaves "sample" in version 2, and this one reads version 1; stop it`) {
		t.Errorf("another version: %v", err)
	}
	for text, want := range map[string]string{
		`{"Name":"a","Count":256,"Inner":null}`:              "cannot unmarshal number 256",
		`{"Name":"a","Count":-1,"Inner":null}`:               "cannot unmarshal number -1",
		`{"Name":"a","Count":1,"Inner":null,"Colour":"red"}`: `unknown field "Colour"`,
		`{"Name":"a","Inner":null}`:                          errLossy.Error(),
		`{"Name":"a","Count":1,"Count":1,"Inner":null}`:      errLossy.Error(),
		`{"name":"a","Count":1,"Inner":null}`:                errLossy.Error(),
		`{"Name":"a","Count":1,"Inner":null}{}`:              "something follows",
		`{"Name":"a","Count":1,"Inner":`:                     "EOF",
		`{"Name":"\ud800","Count":1,"Inner":null}`:           errLossy.Error(),
	} {
		b.parts["sample"] = sealed{2, json.RawMessage(text)}
		if err := b.Get(part, &s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "sample of version 1.2.3") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := b.unread(); err != nil {
		t.Error(err)
	}
	check(t, b.Put(Part{"surprise", 3}, 1))
	if err := b.unread(); err == nil || !strings.Contains(err.Error(), `1.2.3 leaves "surprise" in version 3, of which this one knows nothing`) {
		t.Errorf("an unknown part: %v", err)
	}
	b.Get(Part{"surprise", 3}, new(int))
	b.Keep(99)
	if err := b.unread(); err == nil || !strings.Contains(err.Error(), "descriptors [99]") {
		t.Errorf("a descriptor that nobody takes: %v", err)
	}
}

// TestSeal: a part within another one is read under its name and in its version alone.
func TestSeal(t *testing.T) {
	part, b := Part{"inner", 4}, NewBundle("1.2.3")
	text, err := Seal(part, sample{Name: "a"})
	check(t, err)
	var s sample
	check(t, b.Unseal(text, part, &s))
	for other, want := range map[Part]string{{"outer", 4}: `has left "inner" where "outer" in version 4 was expected`, {"inner", 5}: `leaves "inner" in version 4, and this one reads version 5`} {
		if err := b.Unseal(text, other, &s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("as %v: %v", other, err)
		}
	}
	if err := b.Unseal(json.RawMessage("null"), part, &s); err == nil {
		t.Error("nothing is something")
	}
}

// FuzzBundle: whatever a bundle says, it is refused, or says the same when it is written again, and keeps no descriptor
// that is not open, or standard.
func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"Format":3,"Version":"1.2.3","Files":[],"Parts":{"sample":{"Version":2,"State":{"Name":"a","Count":255,"Inner":null}}}}`))
	f.Add([]byte(`{"Format":3,"Files":[0,-1,999999]}`))
	f.Add([]byte(`{"Format":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parse(text)
		if err != nil {
			return
		}
		for fd := range b.files {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || fd <= unix.Stderr {
				t.Errorf("descriptor %d: %v", fd, err)
			}
		}
		var s sample
		if err := b.Get(Part{"sample", 2}, &s); err == nil {
			check(t, b.Put(Part{"sample", 2}, s))
		}
		memory, err := b.write()
		check(t, err)
		defer memory.Close()
		written, err := io.ReadAll(memory)
		check(t, err)
		again, err := parse(written)
		check(t, err)
		if !reflect.DeepEqual(again.files, b.files) || len(again.parts) != len(b.parts) || again.Version != b.Version {
			t.Errorf("%+v became %+v", b, again)
		}
	})
}

// TestGoldenBundle: the bundle itself is read as it was, and written again so. With another form format changes, and
// the file of this one is written anew by hand.
func TestGoldenBundle(t *testing.T) {
	text, err := os.ReadFile(fmt.Sprintf("testdata/bundle/format-%d.json", format))
	check(t, err)
	b, err := parse(text)
	check(t, err)
	var s sample
	check(t, b.Get(Part{"sample", 2}, &s))
	var word string
	check(t, b.Unseal(s.Inner, Part{"inner", 4}, &word))
	if b.Version != "v1.2.3" || s.Name != "a" || s.Count != 255 || word != "word" {
		t.Errorf("%+v, %+v, %q", b, s, word)
	}
	memory, err := b.write()
	check(t, err)
	defer memory.Close()
	if written, err := io.ReadAll(memory); err != nil || string(written) != string(text) {
		t.Errorf("written as %s, %v", written, err)
	}
}
