package programs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// project is a folder with programs, as npm and people lay them out.
func project(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) {
		t.Helper()
		os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	const env = "#!/usr/bin/env node\n"
	write("package.json", `{"scripts":{"start":"PORT=1 node app.js","dev":"nodemon app.js","web":"next start","loop":"npm run loop","more":"node a.js & node b.js"}}`)
	write("app.js", "")
	write("start", env)
	write("watching", "#!/usr/bin/env -S node --watch\n")
	write("direct", "#!/usr/bin/node\n")
	write("run.sh", "#!/bin/sh\nexec node app.js\n")
	for name, file := range map[string]string{
		"npm": "npm/bin/npm-cli.js", "npx": "npm/bin/npx-cli.js", "nodemon": "nodemon/bin/nodemon.js", "tsx": "tsx/dist/cli.mjs",
		"next": "next/dist/bin/next", "yarn": "corepack/dist/yarn.js", "nest": "@nestjs/cli/bin/nest.js", "serve": "serve/build/main.js",
	} {
		write("node_modules/"+file, env)
		link("node_modules/.bin/"+name, "../"+file)
		link("bin/"+name, "../node_modules/"+file)
	}
	write(".yarn/releases/yarn-4.5.0.cjs", env)
	return dir
}

// TestSee: what listens is found behind what is wrapped around it.
// Rows C1 and C2.
func TestSee(t *testing.T) {
	dir := project(t)
	t.Chdir(dir)
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	for _, test := range []struct {
		command string // split at spaces, unless there is a |
		kind    Kind
		args    string // empty: the command
		script  string
		instead string
	}{
		{command: "node app.js", kind: Node, script: "app.js"},
		{command: "/usr/local/bin/nodejs app", kind: Node, script: "app.js"},
		{command: "node -r dotenv/config --inspect --import tsx --title x app.js --watch", kind: Node, script: "app.js"},
		{command: "node --require=./a.js --max-old-space-size=4096 -- app.js", kind: Node, script: "app.js"},
		{command: "node none.js", kind: Node},
		{command: "start", kind: Other}, // not in PATH
		{command: "./start --watch", kind: Node, args: "node ./start --watch", script: "start"},
		{command: "./direct x", kind: Node, args: "/usr/bin/node ./direct x", script: "direct"},
		{command: "./watching 8080", kind: NodeStarter, args: "node --watch ./watching 8080", instead: "node ./watching 8080"},
		{command: "./run.sh", kind: Other},

		{command: "node", kind: NodeWithoutScript},
		{command: "node -", kind: NodeWithoutScript},
		{command: "node -i", kind: NodeWithoutScript},
		{command: "node -r ./app.js", kind: NodeStarter},
		{command: "node -e 1", kind: NodeStarter},
		{command: "node --eval=1", kind: NodeStarter},
		{command: "node -pe 1", kind: NodeStarter},
		{command: "node -e 1 8080", kind: Node},
		{command: "node --watch app.js 1", kind: NodeStarter, instead: "node app.js 1"},
		{command: "node --enable-source-maps --watch-path ./src --watch-preserve-output app.js", kind: NodeStarter, instead: "node --enable-source-maps app.js"},
		{command: "node --run start", kind: NodeStarter, instead: "env PORT=1 node app.js"},
		{command: "node --run=dev", kind: NodeStarter, instead: "node app.js"},
		{command: "node --test app.js", kind: NodeStarter},
		{command: "node inspect app.js", kind: NodeStarter, instead: "node app.js"},

		{command: "npm start", kind: NodeStarter, args: "node DIR/bin/npm start", instead: "env PORT=1 node app.js"},
		{command: "npm run dev", kind: NodeStarter, args: "node DIR/bin/npm run dev", instead: "node app.js"},
		{command: "npm run web", kind: NodeStarter, args: "node DIR/bin/npm run web", instead: "node_modules/.bin/next start"},
		{command: "npm run loop", kind: NodeStarter, args: "node DIR/bin/npm run loop"},
		{command: "npm run more", kind: NodeStarter, args: "node DIR/bin/npm run more"},
		{command: "npm run none", kind: NodeStarter, args: "node DIR/bin/npm run none"},
		{command: "npx tsx app.js", kind: NodeStarter, args: "node DIR/bin/npx tsx app.js", instead: "node --import tsx app.js"},
		{command: "npx --yes next start", kind: NodeStarter, args: "node DIR/bin/npx --yes next start", instead: "node_modules/.bin/next start"},
		{command: "yarn start", kind: NodeStarter, args: "node DIR/bin/yarn start", instead: "env PORT=1 node app.js"},
		{command: "node .yarn/releases/yarn-4.5.0.cjs dev", kind: NodeStarter, instead: "node app.js"},
		{command: "tsx app.js", kind: NodeStarter, args: "node DIR/bin/tsx app.js", instead: "node --import tsx app.js"},
		{command: "tsx watch app.js", kind: NodeStarter, args: "node DIR/bin/tsx watch app.js"},
		{command: "node_modules/.bin/nodemon app.js", kind: NodeStarter, args: "node node_modules/.bin/nodemon app.js", instead: "node app.js"},
		{command: "node node_modules/.bin/nodemon app.js", kind: NodeStarter, instead: "node app.js"},
		{command: "nest start", kind: NodeStarter, args: "node DIR/bin/nest start"},
		{command: "next start", kind: NodeTool, args: "node DIR/bin/next start"},
		{command: "serve -l 1", kind: NodeTool, args: "node DIR/bin/serve -l 1"},

		{command: "env X=1 Y=2 node app.js", kind: Node, args: "node app.js"},
		{command: "env -u X -C node_modules node ../app.js", kind: Node, args: "node ../app.js", script: "app.js"},
		{command: "env -C node_modules ../start", kind: Node, args: "node DIR/start", script: "start"},
		{command: "env -i node app.js", kind: NodeStarter, args: "node app.js", instead: "node app.js"},
		{command: "setpriv --reset-env node app.js", kind: NodeStarter, args: "node app.js", instead: "node app.js"},
		{command: "env|-S|X=1 node --watch app.js", kind: NodeStarter, args: "node --watch app.js", instead: "node app.js"},
		{command: "nohup nice -n 5 node app.js", kind: Node, args: "node app.js"},
		{command: "nice -5 node app.js", kind: Node, args: "node app.js"},
		{command: "timeout -k 5 --signal INT 1h node app.js", kind: Node, args: "node app.js"},
		{command: "stdbuf -oL -e 0 node app.js", kind: Node, args: "node app.js"},
		{command: "setpriv --reuid=1000 --regid 1000 --clear-groups node app.js", kind: Node, args: "node app.js"},
		{command: "chrt -b 0 ionice -c 2 -n7 taskset -c 0 node app.js", kind: Node, args: "node app.js"},
		{command: "tini -g -- node app.js", kind: Node, args: "node app.js"},
		{command: "dumb-init node app.js", kind: Node, args: "node app.js"},
		{command: "sudo node app.js", kind: Other},
		{command: "nice gunicorn -w 1", kind: Other, args: "gunicorn -w 1"},
		{command: "env", kind: Other},
		{command: "timeout 5", kind: Other},

		{command: "sh|-c|node app.js", kind: Node, args: "node app.js"},
		{command: "bash|-euc|X='a b' exec node \"app.js\" --port $PORT >>log 2>&1", kind: Node, args: "node app.js --port ?"},
		{command: "sh|-c|cd node_modules && exec node ../app.js", kind: Node, args: "node ../app.js", script: "app.js"},
		{command: "sh|-c|ulimit -n 99; umask 077\nexport A=1\nnode app.js\n", kind: Node, args: "node app.js"},
		{command: "/bin/dash|-c|exec nice node app.js", kind: Node, args: "node app.js"},
		{command: "sh|-c|npm start", kind: NodeStarter, args: "node DIR/bin/npm start", instead: "env PORT=1 node app.js"},
		{command: "sh|-c|node app.js; true", kind: Other},
		{command: "sh|-c|node app.js & wait", kind: Other},
		{command: "sh|-c|node a.js | node b.js", kind: Other},
		{command: "sh|-c|node a.js || node b.js", kind: Other},
		{command: "sh|-c|exec $NODE app.js", kind: Other},
		{command: "sh|-c|node $(cat name)", kind: Other},
		{command: "sh|-c|umask 077; X=$$ exec \"$@\"|sh|node|app.js", kind: Node, args: "node app.js"},
		{command: "sh|-c|exec \"$@\"|node", kind: Other},
		{command: "sh|-c|node 'app.js", kind: Other},
		{command: "sh|-c|", kind: Other},
		{command: "sh|-c", kind: Other},
		{command: "sh|app.js", kind: Other},
	} {
		words := strings.Fields(test.command)
		if strings.Contains(test.command, "|") && !strings.Contains(test.command, " | ") && !strings.Contains(test.command, "||") {
			words = strings.Split(test.command, "|")
		} else if strings.HasPrefix(test.command, "sh|") {
			words = strings.SplitN(test.command, "|", 3)
		}
		c := Resolve(words)
		args := test.args
		if args == "" {
			args = strings.Join(words, " ")
		}
		args = strings.ReplaceAll(args, "DIR", dir)
		if got := strings.ReplaceAll(strings.Join(c.Args, " "), unknown, "?"); c.Kind != test.kind || got != args {
			t.Errorf("%q: %v, %q; want %v, %q", test.command, c.Kind, got, test.kind, args)
		}
		if test.script != "" && c.Script != filepath.Join(dir, test.script) {
			t.Errorf("%q: script %q, want %q", test.command, c.Script, test.script)
		}
		if got := strings.Join(c.Instead, " "); got != test.instead {
			t.Errorf("%q: instead %q, want %q", test.command, got, test.instead)
		}
		if (c.Why == "") != (c.Kind == Other) {
			t.Errorf("%q: %v because of %q", test.command, c.Kind, c.Why)
		}
	}
	if c := Resolve(nil); c.Kind != Other || c.Args != nil {
		t.Errorf("no command: %+v", c)
	}
}

// TestSeeIn: what a command names is looked for where it runs.
func TestSeeIn(t *testing.T) {
	dir := project(t)
	for command, want := range map[string]string{
		"node app.js":                     "node: app.js",
		"./start":                         "node: start",
		"env -C node_modules node ../app": "node: app.js",
		"node_modules/.bin/npm start":     "node starter: env PORT=1 node app.js",
		"nginx -c app.js":                 "other: ",
	} {
		c := ResolveIn(dir, strings.Fields(command))
		script, _ := strings.CutPrefix(c.Script, dir+"/")
		if c.Kind == NodeStarter {
			script = strings.Join(c.Instead, " ")
		}
		if got := c.Kind.String() + ": " + script; got != want {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
}

// FuzzShell: every text is read, and what is simple has words without a shell's operators outside of quotes.
func FuzzShell(f *testing.F) {
	for _, text := range []string{"node app.js", "A=1 exec 'b c' \"$d\" >e 2>&1", "cd x && y; z", "`", "a\\\nb", "${a", "'", "<<x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		commands, ok := parseShell(text)
		if !ok && commands != nil {
			t.Errorf("%q: %q", text, commands)
		}
		for _, words := range commands {
			if len(words) == 0 {
				t.Errorf("%q: a command without words: %q", text, commands)
			}
		}
		plain := strings.Map(func(r rune) rune {
			if r == ' ' || r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, text)
		if want := strings.Fields(plain); len(want) > 0 {
			if got, ok := splitWords(plain); !ok || !slices.Equal(got, want) {
				t.Errorf("%q: %q, %v", plain, got, ok)
			}
		}
		Resolve([]string{"sh", "-c", text})
	})
}
