package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/handfast/handfast/fdpass/forwarded"
)

// maxTrusted bounds the ranges of a list: the master looks at all for each connection, and workers get them in one environment
// variable, which may have 128 KiB (man 2 execve).
const maxTrusted = 2000

// trusted reads a list of peers. @FILE in it stands for what is in the file, which is read now: at the start, and by an upgrade.
func (v *values) trusted(name string) (all forwarded.Trust) {
	for entry := range strings.SplitSeq(v.String(name), ",") {
		read := forwarded.ParseTrust
		file, isFile := strings.CutPrefix(strings.TrimSpace(entry), "@")
		if isFile {
			read, entry = readTrusted, file
		}
		some, err := read(entry)
		if err != nil {
			v.fail("--%s: %v", name, err)
		}
		all = append(all, some...)
	}
	if len(all) > maxTrusted {
		v.fail("--%s: %d ranges, want at most %d: merge those that lie side by side", name, len(all), maxTrusted)
		return nil
	}
	return all
}

// readTrusted reads a file with a range, an address or a word in each line. What follows # is a comment.
func readTrusted(path string) (all forwarded.Trust, err error) {
	text, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		some, err := forwarded.ParseTrust(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all = append(all, some...)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// readSmall reads a file of at most maxConfigFile bytes. An error names it.
func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxConfigFile+1))
	if err == nil && len(text) > maxConfigFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxConfigFile)
	}
	return text, err
}
