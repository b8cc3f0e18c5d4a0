package nodeipc

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// IsNode tells whether a command is Node: node, nodejs, or a script that env starts with
// one of them.
func IsNode(command []string) bool {
	if len(command) == 0 {
		return false
	}
	if isNodeName(command[0]) {
		return true
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	first, _ := bufio.NewReaderSize(file, 256).ReadSlice('\n')
	words := strings.Fields(strings.TrimPrefix(string(first), "#!"))
	if !strings.HasPrefix(string(first), "#!") || len(words) == 0 {
		return false
	}
	if filepath.Base(words[0]) != "env" {
		return isNodeName(words[0])
	}
	for _, word := range words[1:] {
		if !strings.HasPrefix(word, "-") && !strings.Contains(word, "=") {
			return isNodeName(word)
		}
	}
	return false
}

func isNodeName(path string) bool {
	name := filepath.Base(path)
	return name == "node" || name == "nodejs"
}
