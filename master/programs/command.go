package programs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Kind is what the program that listens is, as far as that decides how it can be given connections.
type Kind int

// The kinds of programs.
const (
	Other             Kind = iota // anything but Node
	Node                          // Node runs a script, and Node's channel reaches it
	NodeStarter                   // Node, or something that takes Node's channel away, starts the program that listens
	NodeTool                      // a command that npm has installed: it may listen itself, or start what does
	NodeWithoutScript             // Node reads its program from standard input
)

func (k Kind) String() string {
	return [...]string{"other", "node", "node starter", "node tool", "node without a script"}[k]
}

// Command is what a worker's command comes to.
type Command struct {
	Kind Kind
	// Args is the program that runs in the end and its arguments, without env, sh -c and the like
	// before them, and with the interpreter of a script. Never empty if the command is not.
	Args []string
	// Script is the path of what Node runs, links followed; empty if it cannot be told.
	Script string
	// Why says for people what the kind comes from.
	Why string
	// Instead is a command that runs the same program without the starter; nil if it cannot be told.
	Instead []string

	dir   string // where relative names are resolved; empty: the working directory
	depth int    // how many commands were looked through to find it
	cutBy string // the wrapper that keeps Node's channel from the program; empty: none
}

// maxWrappers is how many wrappers around one another are looked through.
const maxWrappers = 16

// Resolve looks through the wrappers of a program that runs in the working directory.
func Resolve(command []string) Command { return ResolveIn("", command) }

// ResolveIn is Resolve for a program that runs in another directory; empty: the working directory.
func ResolveIn(dir string, command []string) Command { return resolve(dir, command, 0) }

func resolve(dir string, command []string, depth int) Command {
	c := Command{Args: command, dir: dir, depth: depth}
	for depth < maxWrappers {
		depth++
		if !c.unwrap() {
			break
		}
	}
	c.classify()
	return c
}

// Name is the program's own name, without the version that Debian gives some: php8.2, php-fpm8.2.
func (c *Command) Name() string {
	if len(c.Args) == 0 {
		return ""
	}
	return strings.TrimRight(filepath.Base(c.Args[0]), "0123456789.")
}

// unwrap takes one wrapper away, and tells whether there was one.
func (c *Command) unwrap() bool {
	if len(c.Args) == 0 {
		return false
	}
	name := filepath.Base(c.Args[0])
	if isShell(name) {
		return c.enterShell()
	}
	if w, ok := wrappers[name]; ok {
		return c.enterWrapper(name, w)
	}
	if isNodeName(c.Args[0]) {
		return false
	}
	return c.enterScript()
}

// enterScript puts the interpreter of a script that is Node's before it. Other interpreters stay
// unseen: a script is known by its own name.
func (c *Command) enterScript() bool {
	path := c.find(c.Args[0])
	interpreter := interpreter(path)
	if len(interpreter) == 0 {
		return false
	}
	in := Command{Args: slices.Concat(interpreter, []string{path}, c.Args[1:]), dir: c.dir}
	if w, ok := wrappers[filepath.Base(interpreter[0])]; ok && !in.enterWrapper("env", w) {
		return false
	}
	if !isNodeName(in.Args[0]) {
		return false
	}
	c.Args = in.Args
	c.cutBy += in.cutBy
	return true
}

// classify says what the program is, when it has no wrapper any more.
func (c *Command) classify() {
	if len(c.Args) == 0 || !isNodeName(c.Args[0]) || c.depth >= maxWrappers {
		return
	}
	c.classifyNode()
	if c.cutBy != "" && (c.Kind == Node || c.Kind == NodeTool) {
		c.Kind, c.Why = NodeStarter, "Node's channel is kept from the program by "+c.cutBy
		c.Instead = c.Args
	}
}

// find returns the path of a program, or "".
func (c *Command) find(name string) string {
	if !strings.Contains(name, "/") {
		path, err := exec.LookPath(name)
		if err != nil {
			return ""
		}
		return path
	}
	return c.path(name)
}

// path returns where a relative name is.
func (c *Command) path(name string) string {
	if filepath.IsAbs(name) || c.dir == "" {
		return name
	}
	return filepath.Join(c.dir, name)
}

// enter changes the directory for what follows.
func (c *Command) enter(dir string) {
	if abs, err := filepath.Abs(c.path(dir)); err == nil { // else paths under it would be resolved again
		c.dir = abs
	}
}

// maxLine is how much of a script's first line the kernel reads (BINPRM_BUF_SIZE).
const maxLine = 256

// interpreter returns the words of a script's first line, none if there is no such line.
func interpreter(path string) []string {
	text := readStart(path, maxLine)
	line, _, _ := strings.Cut(string(text), "\n")
	if words, ok := strings.CutPrefix(line, "#!"); ok {
		return strings.Fields(words)
	}
	return nil
}

// readStart returns the first bytes of an ordinary file, nothing of others: one could wait for them.
func readStart(path string, n int) []byte {
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	buf := make([]byte, n)
	got := 0
	for got < n {
		more, err := file.Read(buf[got:])
		got += more
		if err != nil {
			break
		}
	}
	return buf[:got]
}
