package programs

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

func isNodeName(path string) bool {
	name := filepath.Base(path)
	return name == "node" || name == "nodejs"
}

// nodeValues are Node's options that a value may follow as a word of its own (node --help, 18 to 24).
var nodeValues = map[string]bool{
	"-r": true, "--require": true, "--import": true, "--loader": true, "--experimental-loader": true, "-C": true, "--conditions": true,
	"--env-file": true, "--env-file-if-exists": true, "--input-type": true, "--experimental-default-type": true, "--title": true,
	"--icu-data-dir": true, "--openssl-config": true, "--max-http-header-size": true, "--inspect-port": true, "--debug-port": true,
	"--watch-path": true, "--disable-warning": true, "--dns-result-order": true, "--unhandled-rejections": true, "--diagnostic-dir": true,
	"--redirect-warnings": true, "--trace-event-categories": true, "--trace-event-file-pattern": true, "--heapsnapshot-signal": true,
	"--heapsnapshot-near-heap-limit": true, "--heap-prof-dir": true, "--heap-prof-name": true, "--heap-prof-interval": true,
	"--cpu-prof-dir": true, "--cpu-prof-name": true, "--cpu-prof-interval": true, "--report-dir": true, "--report-directory": true,
	"--report-filename": true, "--report-signal": true, "--secure-heap": true, "--secure-heap-min": true, "--tls-cipher-list": true,
	"--tls-keylog": true, "--use-largepages": true, "--v8-pool-size": true, "--policy-integrity": true, "--experimental-policy": true,
	"--snapshot-blob": true, "--build-snapshot-config": true, "--experimental-sea-config": true, "--disable-proto": true,
	"--allow-fs-read": true, "--allow-fs-write": true, "--inspect-publish-uid": true, "--stack-trace-limit": true, "--localstorage-file": true,
	"--network-family-autoselection-attempt-timeout": true, "--trace-require-module": true, "--watch-kill-signal": true,
	"--experimental-config-file": true,
}

// nodeOption is one of Node's own options.
type nodeOption struct {
	name, value string
	attached    bool     // the value is in the same word
	words       []string // the option's own: one, or two with its value
	rest        []string // that follow its name
}

// readNodeOption reads the option that words begin with; ok is false where Node's options have ended.
func readNodeOption(words []string) (o nodeOption, ok bool) {
	if len(words) == 0 || words[0] == "-" || !strings.HasPrefix(words[0], "-") {
		return o, false
	}
	o = nodeOption{words: words[:1], rest: words[1:]}
	o.name, o.value, o.attached = strings.Cut(words[0], "=")
	if !o.attached && len(o.rest) > 0 {
		o.value = o.rest[0]
		if nodeValues[o.name] {
			o.words = words[:2]
		}
	}
	return o, true
}

// evaluates tells whether Node runs the text of an option: -e, -p, -pe and the like.
func (o nodeOption) evaluates() bool {
	short := len(o.name) < 4 && strings.Trim(o.name, "-pei") == "" && strings.ContainsAny(o.name, "ep")
	return short || o.name == "--eval" || o.name == "--print"
}

// classifyNode reads Node's own options, and says what it runs.
func (c *Command) classifyNode() {
	words := c.Args[1:]
	kept := []string{c.Args[0]} // without what makes it a starter
	preloads, watch := false, ""
	for {
		o, ok := readNodeOption(words)
		if !ok {
			break
		}
		words = words[len(o.words):]
		if o.name == "--" {
			break
		}
		if c.classifyByOption(o) {
			return
		}
		if o.name == "--watch" || o.name == "--watch-path" {
			watch = "node " + o.name
		}
		preloads = preloads || slices.Contains([]string{"-r", "--require", "--import"}, o.name)
		if !strings.HasPrefix(o.name, "--watch") {
			kept = append(kept, o.words...)
		}
	}
	switch {
	case watch != "":
		c.starts(watch, append(kept, words...))
	case len(words) > 0 && words[0] == "inspect":
		c.starts("node inspect", append(kept, words[1:]...))
	case len(words) > 0 && words[0] != "-":
		c.classifyScript(words)
	case preloads:
		c.Kind, c.Why = NodeStarter, "Node does not hear its channel without a script"
	default:
		c.Kind, c.Why = NodeWithoutScript, "Node without a script reads its program from standard input, and workers have none"
	}
}

// classifyByOption says what Node runs if an option alone decides that, and tells whether it does.
func (c *Command) classifyByOption(o nodeOption) bool {
	switch {
	case o.evaluates() && (len(o.rest) > 1 || o.attached && len(o.rest) > 0):
		// A further argument stands where a script would: Node sets its cluster module up.
		c.Kind, c.Why = Node, "the command is Node"
	case o.evaluates():
		c.Kind, c.Why = NodeStarter, "Node does not hear its channel when it runs the text of "+o.name
	case o.name == "--run":
		c.starts("node --run", c.npmScript(o.value))
	case o.name == "--test":
		c.starts("node --test", nil)
	case o.name == "-i" || o.name == "--interactive":
		c.Kind, c.Why = NodeWithoutScript, "Node reads what is typed"
	default:
		return false
	}
	return true
}

// starts says that something starts what listens, and the command that would run it without that.
func (c *Command) starts(starter string, instead []string) {
	c.Kind, c.Instead = NodeStarter, instead
	c.Why = starter + " starts the program that listens, and keeps Node's channel from it"
}

// classifyScript says what a script is that Node runs: the program itself, or a command that npm has
// installed.
func (c *Command) classifyScript(words []string) {
	c.Script = c.script(words[0])
	name := starterName(c.Script, words[0])
	switch instead, ok := starter(name); {
	case ok:
		c.starts(name, instead(c, words))
	case packageOf(c.Script) != "":
		c.Kind, c.Why = NodeTool, "npm has installed the command: it may start what listens, and keep Node's channel from it"
	default:
		c.Kind, c.Why = Node, "the command is Node"
	}
}

// script returns the path of a script, as Node resolves it (links followed), or "".
func (c *Command) script(name string) string {
	for _, suffix := range []string{"", ".js"} {
		if path, err := filepath.EvalSymlinks(c.path(name + suffix)); err == nil {
			path, _ = filepath.Abs(path)
			return path
		}
	}
	return ""
}

// packageOf returns the name of the npm package that a file belongs to, or "".
func packageOf(path string) string {
	segments := strings.Split(path, "/")
	for i := len(segments) - 2; i > 0; i-- {
		inDebian := segments[i] == "nodejs" && segments[i-1] == "share"
		if segments[i] != "node_modules" && !inDebian {
			continue
		}
		name := segments[i+1]
		if strings.HasPrefix(name, "@") && i+2 < len(segments) {
			name += "/" + segments[i+2]
		}
		return name
	}
	return ""
}

// starterName returns the name under which starter knows a script: a package's, or, where no
// package is to be seen, the file's.
func starterName(path, typed string) string {
	name := strings.TrimSuffix(filepath.Base(typed), filepath.Ext(typed))
	switch of := packageOf(path); {
	case of == "npm" && strings.HasPrefix(name, "npx"):
		return "npx"
	case of == "corepack" && (strings.HasPrefix(name, "yarn") || strings.HasPrefix(name, "pnp")):
		return strings.TrimSuffix(name, "pkg")
	case of != "":
		return of
	case strings.HasPrefix(name, "yarn-"): // .yarn/releases/yarn-4.5.0.cjs
		return "yarn"
	default:
		return strings.TrimSuffix(name, "-cli")
	}
}

// starter tells whether a script of Node starts the program that listens as a child, which does
// not get the channel. The function returns the command without the starter, or nil.
func starter(name string) (instead func(c *Command, words []string) []string, ok bool) {
	switch name {
	case "npm", "yarn", "pnpm":
		return npmStarts, true
	case "npx", "pnpx":
		return npxStarts, true
	case "nodemon", "node-dev", "supervisor":
		return sameScript, true
	case "tsx":
		return throughTSX, true
	}
	return notTold, slices.Contains(otherStarters, name)
}

// otherStarters are those of whose arguments we know nothing.
var otherStarters = []string{
	"corepack", "ts-node-dev", "forever", "pm2", "@nestjs/cli", "nuxt", "nuxi", "@babel/node",
	"concurrently", "npm-run-all", "npm-run-all2", "wireit", "nx", "turbo", "lerna",
	"cross-env", "dotenv-cli", "@dotenvx/dotenvx", "env-cmd", "deno", "bun",
}

func notTold(*Command, []string) []string { return nil }

// sameScript: what follows is a script and its arguments.
func sameScript(_ *Command, words []string) []string {
	if len(words) < 2 || strings.HasPrefix(words[1], "-") || words[1] == "watch" {
		return nil
	}
	return append([]string{"node"}, words[1:]...)
}

// throughTSX: Node itself can load what tsx loads (Node 20.6 and later).
func throughTSX(c *Command, words []string) []string {
	if command := sameScript(c, words); command != nil {
		return slices.Insert(command, 1, "--import", "tsx")
	}
	return nil
}

// npmStarts reads what npm start, npm run NAME and the like run.
func npmStarts(c *Command, words []string) []string {
	operands := slices.DeleteFunc(slices.Clone(words[1:]), func(w string) bool { return strings.HasPrefix(w, "-") })
	switch {
	case len(operands) == 0:
		return nil
	case slices.Contains([]string{"run", "run-script", "rum", "urn"}, operands[0]):
		operands = operands[1:]
	case slices.Contains([]string{"exec", "x", "dlx"}, operands[0]):
		return npxStarts(c, append([]string{"npx"}, words[2:]...))
	}
	if len(operands) != 1 {
		return nil
	}
	return c.npmScript(operands[0])
}

// npxStarts: the command is one of the project's.
func npxStarts(c *Command, words []string) []string {
	words = words[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	return c.within(slices.Concat([]string{c.local(words[0])}, words[1:]))
}

// maxPackage is how much of a package.json is read.
const maxPackage = 1 << 20

// npmScript returns the command that a script of package.json comes to, if that is Node.
func (c *Command) npmScript(name string) []string {
	var content struct {
		Scripts map[string]string `json:"scripts"`
	}
	if json.Unmarshal(readStart(c.path("package.json"), maxPackage), &content) != nil {
		return nil
	}
	text, ok := content.Scripts[name]
	if !ok && name == "start" {
		text = "node server.js" // npm's default (npm-start(1))
	}
	words, ok := splitWords(text)
	if !ok || strings.Contains(text, "$") {
		return nil
	}
	at := slices.IndexFunc(words, func(w string) bool { return !isAssignment(w) })
	if at < 0 {
		return nil
	}
	assignments, words := words[:at], words[at:]
	words[0] = c.local(words[0])
	command := c.within(words)
	if command != nil && len(assignments) > 0 {
		return slices.Concat([]string{"env"}, assignments, command)
	}
	return command
}

// local returns the path of a command that the project has installed.
func (c *Command) local(name string) string {
	if path := filepath.Join("node_modules/.bin", name); !strings.Contains(name, "/") && len(readStart(c.path(path), 1)) > 0 {
		return path
	}
	return name
}

// within returns a command that a starter starts, if Node's channel would reach it, or else what
// it starts itself.
func (c *Command) within(command []string) []string {
	switch in := resolve(c.dir, command, c.depth+1); in.Kind {
	case Node, NodeTool:
		return command
	case NodeStarter:
		return in.Instead
	default:
		return nil
	}
}
