package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/supervisor"
)

// maxProgram is how much of a program, or of a script that it runs, is looked at.
const maxProgram = 256 << 20

// namesMailbox tells whether a worker's program, or a file among its arguments, contains
// the name of the variable by which workers find their mailbox: as programs with package
// worker do, and scripts that follow fdpass/doc.go.
func namesMailbox(setting supervisor.Setting, command []string) bool {
	if len(command) == 0 {
		return false
	}
	if path, err := setting.Find(command[0]); err == nil && fileContains(path, []byte(fdpass.EnvFD)) {
		return true
	}
	for _, arg := range command[1:] {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(setting.Directory, arg)
		}
		if fileContains(arg, []byte(fdpass.EnvFD)) {
			return true
		}
	}
	return false
}

// fileContains is false for what is no ordinary file.
func fileContains(path string, text []byte) bool {
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	limited := io.LimitReader(file, maxProgram)
	buffer := make([]byte, 1<<20)
	kept := 0 // from the last read, in case text is cut
	for {
		n, err := limited.Read(buffer[kept:])
		if bytes.Contains(buffer[:kept+n], text) {
			return true
		}
		if err != nil {
			return false
		}
		end := kept + n
		kept = min(len(text)-1, end)
		copy(buffer, buffer[end-kept:end])
	}
}
