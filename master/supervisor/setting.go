package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/asuser"
)

// Setting is where a worker's command runs, and with which variables. It is looked at anew at each
// start: a link that a deployment has moved meanwhile leads to the new version. What cannot be had
// is an error of that start, and so of a reload.
type Setting struct {
	// Directory is where the command runs, an absolute path; empty: where the master does. It is
	// entered by the user that the worker runs as. A command with a slash in it that is relative is
	// relative to it. PWD is this path as it is written, as in a shell after cd.
	Directory string

	// EnvFiles are files of variables (parseEnv), read by the master. A later one comes before an
	// earlier one.
	EnvFiles []string

	// Env are variables, NAME=value, that come before those of files. {slot} and {generation} in a
	// value, and in the command's arguments, are the worker's (Seat.Expand).
	Env []string
}

// Check tells whether the directory can be entered and the files can be read, as a start does.
func (s Setting) Check(rights Rights) error {
	_, err := s.environ(Seat{}, rights)
	return err
}

// environ returns the variables, and checks that the directory can be entered: the error of a start
// would say only that the command is not there.
func (s Setting) environ(seat Seat, rights Rights) (env []string, err error) {
	if err := rights.enter(s.Directory); err != nil {
		return nil, fmt.Errorf("--directory %s: %w", s.Directory, err)
	}
	if env, err = s.variables(seat); err != nil {
		return nil, err
	}
	if s.Directory != "" {
		env = append(env, "PWD="+s.Directory)
	}
	return env, nil
}

func (s Setting) variables(seat Seat) (env []string, err error) {
	for _, path := range s.EnvFiles {
		variables, err := readEnv(path)
		if err != nil {
			return nil, fmt.Errorf("--env-file %w", err)
		}
		env = append(env, variables...)
	}
	for _, variable := range s.Env {
		name, value, _ := strings.Cut(variable, "=")
		env = append(env, name+"="+seat.Expand(value))
	}
	return env, nil
}

// Find returns the file of a command: one with a slash in its name is relative to the directory, and
// another one is in the PATH that the worker has.
func (s Setting) Find(command string) (string, error) {
	if strings.Contains(command, "/") {
		if s.Directory != "" && !filepath.IsAbs(command) { // else ./server would become server, which is looked for elsewhere
			command = filepath.Join(s.Directory, command)
		}
		return exec.LookPath(command)
	}
	search, ok := s.path()
	if !ok {
		return exec.LookPath(command)
	}
	for _, folder := range filepath.SplitList(search) {
		if path, err := exec.LookPath(filepath.Join(folder, command)); err == nil && filepath.IsAbs(folder) {
			return path, nil
		}
	}
	return "", &exec.Error{Name: command, Err: exec.ErrNotFound}
}

// path returns the PATH that is set here.
func (s Setting) path() (value string, ok bool) {
	variables, err := s.variables(Seat{})
	if err != nil {
		return "", false
	}
	return lastOf(variables, "PATH")
}

// Located is a command whose relative file names that are in the directory are absolute, for
// questions about what it is.
func (s Setting) Located(command []string) []string {
	command = slices.Clone(command)
	for i, arg := range command {
		if i == 0 {
			if _, ok := s.path(); ok || strings.Contains(arg, "/") {
				if path, err := s.Find(arg); err == nil {
					command[0] = path
				}
			}
			continue
		}
		if path := filepath.Join(s.Directory, arg); s.Directory != "" && arg != "" && !filepath.IsAbs(arg) {
			if _, err := os.Stat(path); err == nil {
				command[i] = path
			}
		}
	}
	return command
}

// placeholder is a word that stands for a number, with what may make it something else.
var placeholder = regexp.MustCompile(`\$?\{?\{(?:slot|generation)\}\}?`)

// Expand puts a worker's numbers in the place of {slot} and {generation}. {{slot}} is {slot}, and
// ${slot}, which is a shell's, stays, as does everything else.
func (seat Seat) Expand(text string) string {
	numbers := strings.NewReplacer("{slot}", strconv.Itoa(seat.Slot), "{generation}", strconv.Itoa(seat.Generation))
	return placeholder.ReplaceAllStringFunc(text, func(word string) string {
		switch {
		case strings.HasPrefix(word, "$"):
			return word
		case strings.HasPrefix(word, "{{") && strings.HasSuffix(word, "}}"):
			return word[1 : len(word)-1]
		default:
			return numbers.Replace(word)
		}
	})
}

// expand is Expand for all arguments of a command.
func (seat Seat) expand(command []string) []string {
	command = slices.Clone(command)
	for i := 1; i < len(command); i++ {
		command[i] = seat.Expand(command[i])
	}
	return command
}

// enter tells whether a worker's user may enter a directory, without doing so. Empty: it is where
// the master is.
func (r Rights) enter(directory string) error {
	if directory == "" {
		return nil
	}
	return asuser.Do(r.User, func() error {
		fd, err := unix.Open(directory+"/.", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
}
