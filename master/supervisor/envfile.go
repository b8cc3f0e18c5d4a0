package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxEnvFile bounds a file of variables, in bytes.
const maxEnvFile = 1 << 20

// readEnv reads a file of variables.
func readEnv(path string) ([]string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, withPathOnce(path, err)
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return nil, withPathOnce(path, err)
	}
	if !stat.Mode().IsRegular() { // it is read again and again, and must not be waited for
		return nil, fmt.Errorf("%s: want an ordinary file", path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxEnvFile+1))
	if err != nil {
		return nil, withPathOnce(path, err)
	}
	if len(text) > maxEnvFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxEnvFile)
	}
	variables, line, err := parseEnv(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, line, err)
	}
	return variables, nil
}

// withPathOnce is an error with the path once.
func withPathOnce(path string, err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// parseEnv reads lines of NAME=value, as in files for systemd and Docker:
//
//   - Empty lines are left out, and those that begin with # or ;. A # further on belongs to the value.
//   - A name may follow "export".
//   - White space around a value does not belong to it.
//   - A value in single quotes is what is between them; in double quotes \\, \", \$, \n, \r and \t are
//     one character each. Nothing may follow the closing quote.
//   - Nothing is put in the place of $NAME or {slot}.
//
// An error is about a line, the first is 1.
func parseEnv(text []byte) (variables []string, line int, err error) {
	for raw := range bytes.Lines(text) {
		line++
		content := strings.TrimSpace(string(raw))
		if content == "" || content[0] == '#' || content[0] == ';' {
			continue
		}
		if after, ok := strings.CutPrefix(content, "export"); ok && strings.TrimLeft(after, " \t") != after {
			content = strings.TrimLeft(after, " \t")
		}
		name, value, ok := strings.Cut(content, "=")
		if !ok || !IsVariable(name) {
			return nil, line, errors.New("want NAME=value")
		}
		if value, err = unquote(strings.TrimSpace(value)); err != nil {
			return nil, line, fmt.Errorf("%s: %w", name, err)
		}
		variables = append(variables, name+"="+value)
	}
	return variables, line, nil
}

// IsVariable tells whether a text is the name of an environment variable.
func IsVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// The errors of a value.
var (
	errNoClosing = errors.New("no closing quote in this line")
	errAfter     = errors.New("something follows the closing quote")
	errNUL       = errors.New("a value cannot contain NUL")
)

var escaped = map[byte]byte{'\\': '\\', '"': '"', '$': '$', 'n': '\n', 'r': '\r', 't': '\t'}

// unquote returns what a value says.
func unquote(value string) (string, error) {
	if strings.IndexByte(value, 0) >= 0 {
		return "", errNUL
	}
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return value, nil
	}
	quote, b := value[0], []byte(nil)
	for i := 1; i < len(value); i++ {
		c := value[i]
		if c == quote {
			if i < len(value)-1 {
				return "", errAfter
			}
			return string(b), nil
		}
		if c == '\\' && quote == '"' && i+1 < len(value) {
			if plain, ok := escaped[value[i+1]]; ok {
				c, i = plain, i+1
			}
		}
		b = append(b, c)
	}
	return "", errNoClosing
}
