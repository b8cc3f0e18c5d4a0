package programs

import (
	"path/filepath"
	"slices"
	"strings"
)

func isShell(name string) bool {
	return slices.Contains([]string{"sh", "dash", "bash", "ash", "ksh", "zsh"}, name)
}

// enterShell looks into sh -c 'command', if that is one simple command, which exec, assignments,
// and commands without a process such as cd may stand before. The shell becomes it, or waits for
// it; descriptors and environment pass either way.
func (c *Command) enterShell() bool {
	words := c.Args[1:]
	text, operands := "", []string(nil)
	for ; len(words) > 0 && strings.HasPrefix(words[0], "-") && words[0] != "--"; words = words[1:] {
		if strings.HasPrefix(words[0], "--") {
			continue // --norc, --posix
		}
		if strings.Contains(words[0], "o") { // -o pipefail
			return false
		}
		if strings.Contains(words[0], "c") && len(words) > 1 {
			text = words[1]
			operands = words[min(3, len(words)):] // the first is $0
			break
		}
	}
	in := Command{dir: c.dir, depth: c.depth, cutBy: c.cutBy}
	commands, ok := parseShell(text)
	if !ok || len(commands) == 0 {
		return false
	}
	for i, words := range commands {
		if at := slices.Index(words, positional); at >= 0 { // exec "$@"
			words = slices.Concat(words[:at], operands, words[at+1:])
		}
		for len(words) > 0 && isAssignment(words[0]) {
			words = words[1:]
		}
		last := i == len(commands)-1
		switch {
		case len(words) == 0:
			if last {
				return false
			}
			continue
		case last:
			in.Args = words
		case words[0] == "cd":
			if len(words) != 2 || strings.Contains(words[1], unknown) {
				return false
			}
			in.enter(words[1])
		case !slices.Contains([]string{"export", "set", "umask", "ulimit", "unset", ":", "true"}, words[0]):
			return false
		}
	}
	if in.Args[0] == "exec" {
		in.Args = in.Args[1:]
	}
	if len(in.Args) == 0 || strings.HasPrefix(in.Args[0], "-") || strings.Contains(in.Args[0], unknown) || filepath.Base(in.Args[0]) == "." {
		return false
	}
	*c = in
	return true
}

// unknown stands in a word for what only the shell knows: the value of a variable.
const unknown = "\x00"

// positional is a word that stands for all arguments: "$@".
const positional = unknown + "@"

// splitWords splits a text into words as a shell does, if there is nothing in it but words.
func splitWords(text string) ([]string, bool) {
	commands, ok := parseShell(text)
	if !ok || len(commands) != 1 {
		return nil, false
	}
	return commands[0], true
}

// parseShell splits a shell's text into commands that run one after the other (&&, ;), and each
// into words. Redirections are left out. It is false for everything else that a shell knows.
func parseShell(text string) (commands [][]string, ok bool) {
	p := shellParser{rest: text}
	for p.rest != "" {
		if !p.next() {
			return nil, false
		}
	}
	p.endWord()
	if p.redirect {
		return nil, false
	}
	if len(p.words) > 0 {
		p.commands = append(p.commands, p.words)
	}
	return p.commands, true
}

type shellParser struct {
	rest     string
	word     strings.Builder
	inWord   bool // also if the word is empty, as ''
	redirect bool // the next word is where a redirection goes
	words    []string
	commands [][]string
}

func (p *shellParser) take(n int) string {
	text := p.rest[:n]
	p.rest = p.rest[n:]
	return text
}

func (p *shellParser) endWord() {
	if p.inWord && !p.redirect {
		p.words = append(p.words, p.word.String())
	}
	if p.inWord {
		p.redirect = false
	}
	p.word.Reset()
	p.inWord = false
}

// endCommand is false where there is no command to end.
func (p *shellParser) endCommand() bool {
	p.endWord()
	if p.redirect || len(p.words) == 0 {
		return false
	}
	p.commands = append(p.commands, p.words)
	p.words = nil
	return true
}

// next takes what comes next, and is false if that is nothing simple.
func (p *shellParser) next() bool {
	switch c := p.rest[0]; c {
	case ' ', '\t':
		p.take(1)
		p.endWord()
	case '\n':
		p.take(1)
		p.endWord()
		return len(p.words) == 0 || p.endCommand()
	case ';':
		p.take(1)
		return p.endCommand()
	case '&':
		if !strings.HasPrefix(p.rest, "&&") {
			return false // in the background
		}
		p.take(2)
		return p.endCommand()
	case '>', '<':
		return p.redirection()
	case '\'':
		p.take(1)
		end := strings.IndexByte(p.rest, '\'')
		if end < 0 {
			return false
		}
		p.word.WriteString(p.take(end))
		p.take(1)
		p.inWord = true
	case '"':
		p.take(1)
		p.inWord = true
		return p.quoted()
	case '\\':
		if len(p.rest) < 2 {
			return false
		}
		p.take(1)
		if c := p.take(1); c != "\n" {
			p.word.WriteString(c)
			p.inWord = true
		}
	case '$':
		p.inWord = true
		return p.variable()
	case '|', '(', ')', '`', '{', '}', '*', '?', '[', '!':
		return false
	case '#', '~':
		if !p.inWord {
			return false
		}
		p.word.WriteString(p.take(1))
	default:
		p.word.WriteString(p.take(1))
		p.inWord = true
	}
	return true
}

// redirection takes > and the like; the number before it belongs to it.
func (p *shellParser) redirection() bool {
	if p.inWord && strings.Trim(p.word.String(), "0123456789") == "" {
		p.word.Reset()
		p.inWord = false
	}
	p.endWord()
	if p.redirect || strings.HasPrefix(p.rest, "<<") || strings.HasPrefix(p.rest, "<(") || strings.HasPrefix(p.rest, ">(") {
		return false
	}
	for _, operator := range []string{">>", ">&", "<&", ">|", "<>", ">", "<"} {
		if strings.HasPrefix(p.rest, operator) {
			p.take(len(operator))
			break
		}
	}
	p.redirect = true
	return true
}

// quoted takes the rest of a text in double quotes.
func (p *shellParser) quoted() bool {
	for p.rest != "" {
		switch c := p.rest[0]; c {
		case '"':
			p.take(1)
			return true
		case '`':
			return false
		case '$':
			if !p.variable() {
				return false
			}
		case '\\':
			if len(p.rest) < 2 {
				return false
			}
			if strings.IndexByte("\"\\$`\n", p.rest[1]) >= 0 {
				p.take(1)
			}
			if c := p.take(1); c != "\n" {
				p.word.WriteString(c)
			}
		default:
			p.word.WriteString(p.take(1))
		}
	}
	return false
}

// variable takes $NAME or ${NAME}, and puts unknown in its place. What substitutes a command's
// output is nothing simple.
func (p *shellParser) variable() bool {
	p.take(1)
	p.word.WriteString(unknown)
	if strings.HasPrefix(p.rest, "{") {
		end := strings.IndexByte(p.rest, '}')
		if end < 0 || strings.ContainsAny(p.rest[:end], "$`'\"\\") {
			return false
		}
		p.take(end + 1)
		return true
	}
	n := 0
	for n < len(p.rest) && isName("_"+p.rest[n:n+1]) {
		n++
	}
	if n == 0 && p.rest != "" && strings.IndexByte("@*#?-$!", p.rest[0]) >= 0 {
		n = 1
	}
	if name := p.take(n); name == "@" {
		p.word.WriteString(name)
	}
	return n > 0
}
