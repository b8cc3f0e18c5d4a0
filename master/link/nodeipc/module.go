package nodeipc

import (
	_ "embed"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

//go:embed preload.cjs
var preload []byte

// nodeOptions is the variable of which Node takes options before those of its command line.
const nodeOptions = "NODE_OPTIONS"

// Module is the file of what workers load (preload.cjs).
type Module struct {
	path string
	mu   sync.Mutex // of writing
}

// NewModule writes the file into a directory that only the master may write, and that workers may enter. Its name tells its
// content, so that others of the same version use the same one, and it stays there: processes that workers start load it, too.
func NewModule(directory string) (*Module, error) {
	m := &Module{path: filepath.Join(directory, fmt.Sprintf("node-%08x.cjs", crc32.ChecksumIEEE(preload)))}
	if strings.ContainsAny(m.path, "\"\\") {
		return nil, fmt.Errorf("nodeipc: %q cannot be named in %s", m.path, nodeOptions)
	}
	return m, m.write()
}

// write writes the file unless it is there: a directory for temporary files may have been tidied.
func (m *Module) write() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Stat(m.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(m.path), "node-*")
	if err != nil {
		return fmt.Errorf("nodeipc: %w", err)
	}
	_, err = file.Write(preload)
	err = errors.Join(err, file.Chmod(0o444), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), m.path)
	}
	if err != nil {
		os.Remove(file.Name())
		return fmt.Errorf("nodeipc: %w", err)
	}
	return nil
}

// environ returns the variable by which Node loads the file, with what it has already. Without a file Node would
// not start, so then it is left as it is.
func (m *Module) environ(get func(string) string) []string {
	if m == nil || m.write() != nil {
		return nil
	}
	option := fmt.Sprintf("--require=%q", m.path)
	if before := get(nodeOptions); before != "" {
		option = before + " " + option
	}
	return []string{nodeOptions + "=" + option}
}
