package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Row D1: the words that stand for a worker's numbers, and what is left alone.
func TestExpand(t *testing.T) {
	seat := Seat{Slot: 2, Slots: 4, Generation: 7}
	for text, want := range map[string]string{
		"{slot}":                        "2",
		"--port=900{slot}-{generation}": "--port=9002-7",
		"{{slot}} {{generation}}":       "{slot} {generation}",
		"${slot} $${generation}":        "${slot} $${generation}",
		`{"id":{slot}}`:                 `{"id":2}`,
		"{slots} { slot } {SLOT} {}":    "{slots} { slot } {SLOT} {}",
		"{{slot} {slot}}":               "{2 2}",
		"":                              "",
	} {
		if got := seat.Expand(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	command := []string{"{slot}", "{slot}"}
	if got := seat.expand(command); !slices.Equal(got, []string{"{slot}", "2"}) || command[1] != "{slot}" {
		t.Errorf("%q, of %q", got, command)
	}
}

// Row D1: what a file of variables may say.
func TestParseEnv(t *testing.T) {
	got, _, err := parseEnv([]byte("\xef\xbb\xbfA=1\n"))
	if err == nil {
		t.Errorf("a byte order mark is part of a name: %q", got)
	}
	got, _, err = parseEnv([]byte(strings.Join([]string{
		"# comment", "; comment", "", "  \t", "A=1", "B = 2"[:1] + "=2 # no comment ", "\texport C=x=y", "export=1", "D=", `E='a "b" \n $X '`,
		`F="a 'b' \n \" \\ \$X \d"`, `G="" `, "H=back\\slash $PATH {slot}", "I=crlf\r", "A=2", "J='last'",
	}, "\n")))
	want := []string{"A=1", "B=2 # no comment", "C=x=y", "export=1", "D=", `E=a "b" \n $X `, "F=a 'b' \n \" \\ $X \\d", "G=",
		"H=back\\slash $PATH {slot}", "I=crlf", "A=2", "J=last"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want\n%q", got, err, want)
	}
	for text, says := range map[string]string{
		"A=1\nB":        "2: want NAME=value",
		"\n\n=1":        "3: want NAME=value",
		"A =1":          "1: want NAME=value",
		"1A=1":          "1: want NAME=value",
		"A-B=1":         "1: want NAME=value",
		"A='x":          "1: A: no closing quote in this line",
		"A=\"x\\\"":     "1: A: no closing quote in this line",
		"A=\"x\" # y":   "1: A: something follows the closing quote",
		"A=\x00":        "1: A: a value cannot contain NUL",
		"A=1\nB='\n'\n": "2: B: no closing quote in this line",
	} {
		path := filepath.Join(t.TempDir(), "env")
		write(t, path, text)
		if _, err := readEnv(path); err == nil || err.Error() != path+":"+says {
			t.Errorf("%q: %v, want %s", text, err, says)
		}
	}
}

// FuzzParseEnv: what is taken is NAME=value without NUL, and what is said of a line is of one that
// there is.
func FuzzParseEnv(f *testing.F) {
	for _, text := range []string{"A=1\n# x\nexport B='x'\n", "A=\"\\n\\\\\" ", "=\n", "A='\n'"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		variables, line, err := parseEnv(text)
		if lines := strings.Count(string(text), "\n") + 1; line > lines || len(variables) > lines {
			t.Errorf("line %d, %d variables of %d lines", line, len(variables), lines)
		}
		for _, variable := range variables {
			name, _, ok := strings.Cut(variable, "=")
			if !ok || !IsVariable(name) || strings.Contains(variable, "\x00") {
				t.Errorf("%q", variable)
			}
		}
		if err == nil && len(text) < maxEnvFile {
			again, _, err := parseEnv([]byte(requote(variables)))
			if err != nil || !slices.Equal(again, variables) {
				t.Errorf("%q again is %q, %v", variables, again, err)
			}
		}
	})
}

// requote writes variables as a file.
func requote(variables []string) string {
	var b strings.Builder
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		value = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "\n", `\n`, "\r", `\r`).Replace(value)
		b.WriteString(name + `="` + value + "\"\n")
	}
	return b.String()
}

// Row D1: what is not there, or not a worker's to enter, is said with its name.
func TestSettingCheck(t *testing.T) {
	dir := t.TempDir()
	private := filepath.Join(dir, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	write(t, file, "A=1\n")
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody := Rights{User: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{65534}}}
	for _, test := range []struct {
		setting Setting
		rights  Rights
		want    error
	}{
		{Setting{}, Rights{}, nil},
		{Setting{Directory: private, EnvFiles: []string{file}}, Rights{}, nil},
		{Setting{Directory: dir + "/none"}, Rights{}, syscall.ENOENT},
		{Setting{Directory: file}, Rights{}, syscall.ENOTDIR},
		{Setting{EnvFiles: []string{file, dir + "/none"}}, Rights{}, syscall.ENOENT},
		{Setting{Directory: "/"}, nobody, nil},
		{Setting{Directory: private}, nobody, syscall.EACCES},
		{Setting{EnvFiles: []string{file}}, nobody, nil}, // the master reads it
	} {
		if test.rights.User != nil && os.Geteuid() != 0 {
			continue
		}
		if err := test.setting.Check(test.rights); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%+v: %v, want %v", test.setting, err, test.want)
		}
	}
	for _, path := range []string{dir, dir + "/fifo"} {
		if err := (Setting{EnvFiles: []string{path}}).Check(Rights{}); err == nil || !strings.Contains(err.Error(), path+": want an ordinary file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	f, err := os.Open(private)
	if err != nil {
		t.Errorf("the rights of this process are not what they were: %v", err)
	}
	f.Close()
}

// Row D1: where a command is looked for.
func TestSettingFind(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	write(t, program, "#!/bin/sh\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	inPath := Setting{Env: []string{"PATH=.:/none:" + dir}}
	for _, test := range []struct {
		setting       Setting
		command, want string
	}{
		{Setting{Directory: dir}, "./program", program},
		{Setting{Directory: dir}, "program", ""},
		{Setting{}, program, program},
		{inPath, "program", program},
		{inPath, "sh", ""},
		{Setting{Directory: dir}, "./none", ""},
		{Setting{}, "./program", "./program"},
		{inPath, "./program", "./program"},
		{Setting{}, "./sh", ""},
	} {
		if got, err := test.setting.Find(test.command); got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%+v, %s: %q, %v; want %q", test.setting, test.command, got, err, test.want)
		}
	}
	if got := (Setting{Directory: dir}).Located([]string{"./program", "program", "none", "", "-x"}); !slices.Equal(got, []string{program, program, "none", "", "-x"}) {
		t.Errorf("located: %q", got)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
