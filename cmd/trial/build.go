package trial

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// built is what tests have had built. Each thing is built once, and stays until the tests of the
// package have ended.
var built struct {
	dir string // everybody may enter it; "" outside of Main

	mu     sync.Mutex
	things map[string]*thing
}

// thing is a folder that build fills.
type thing struct {
	once sync.Once
	dir  string
	err  error
}

// perCPU is how many parallel tests run for each CPU, unless -parallel says how many do: most of
// their time they wait for processes.
const perCPU = 4

// Main runs the tests of a package that has something built, and returns their exit status.
func Main(m *testing.M) (status int) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		flag.Set("test.parallel", strconv.Itoa(perCPU*runtime.GOMAXPROCS(0)))
	}
	var err error
	if built.dir, err = os.MkdirTemp("", "trial"); err == nil {
		defer os.RemoveAll(built.dir)
		err = os.Chmod(built.dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv("HANDFAST_PROBATION", "0") // reloads would take that long
	built.things = make(map[string]*thing)
	return m.Run()
}

// notShort skips a test of real programs where -short asks for quick ones.
func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real programs")
	}
}

// once returns the folder of what has this name, which build has filled for whoever came first.
func once(t *testing.T, name string, build func(dir string) error) (dir string) {
	t.Helper()
	notShort(t)
	if built.dir == "" {
		t.Fatal("TestMain does not call trial.Main")
	}
	built.mu.Lock()
	b := built.things[name]
	if b == nil {
		b = &thing{dir: filepath.Join(built.dir, strconv.Itoa(len(built.things)))}
		built.things[name] = b
	}
	built.mu.Unlock()
	b.once.Do(func() {
		if b.err = os.Mkdir(b.dir, 0o755); b.err == nil {
			b.err = build(b.dir)
		}
	})
	if b.err != nil {
		t.Fatalf("%s: %v", name, b.err)
	}
	return b.dir
}

// Build returns the path of a program of this module, which is static. It stays until the tests of
// the package have ended.
func Build(t *testing.T, pkg string) (program string) {
	t.Helper()
	return goBuild(t, pkg, "CGO_ENABLED=0")
}

// BuildAsTest is Build with the race detector if the test has it.
func BuildAsTest(t *testing.T, pkg string) (program string) {
	t.Helper()
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return goBuild(t, pkg, "CGO_ENABLED=1", "-race")
	}
	return Build(t, pkg)
}

func goBuild(t *testing.T, pkg, env string, flags ...string) (program string) {
	t.Helper()
	args := slices.Concat([]string{"build"}, flags, []string{pkg})
	name := env + " go " + strings.Join(args, " ")
	return filepath.Join(once(t, name, func(dir string) error {
		return kept(func(folder string) error {
			program := filepath.Join(folder, "program")
			cmd := exec.Command("go", slices.Insert(args, 1, "-o", program)...) // links it only if it is not up to date
			cmd.Env = append(os.Environ(), env)
			if err := output(cmd); err != nil {
				return err
			}
			return copyAll(program, dir)
		}, name)
	}), "program")
}

// BuildAt is Build as of a commit of this clone. All are built in one folder: what did not change in between, and what
// other modules have, is compiled once.
func BuildAt(t *testing.T, commit, pkg string) (program string) {
	t.Helper()
	const script = `rm -rf "$1" && mkdir "$1" && git -C "$(git rev-parse --show-toplevel)" archive "$2" | tar -x -C "$1" &&
		cd "$1" && CGO_ENABLED=0 go build -buildvcs=false -o "$3" "$4"`
	return filepath.Join(once(t, pkg+" of "+commit, func(dir string) error {
		return kept(func(folder string) error {
			return output(exec.Command("sh", "-c", script, "sh", filepath.Join(folder, "source"), commit, filepath.Join(dir, "program"), pkg))
		}, "source of a commit")
	}), "program")
}

// LightJava is an environment in which Java starts with less work. It changes nothing for clients.
const LightJava = "JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

// CompileJava returns the folder of the classes of a source file, as Build does.
func CompileJava(t *testing.T, source string) (classes string) {
	t.Helper()
	javac := Need(t, "javac", "default-jdk-headless")
	return once(t, "javac "+source, func(dir string) error {
		text, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		return kept(func(folder string) error {
			classes, err := filled(folder, func(folder string) error {
				return output(exec.Command(javac, "-J-XX:TieredStopAtLevel=1", "-d", folder, source))
			})
			if err != nil {
				return err
			}
			return copyAll(classes+"/.", dir)
		}, "javac", string(text))
	})
}

// Install copies the files of a Node example, which is the current directory, to another one, and
// installs there what its lock file names, as Build does: the same files asked for again give
// the same directory.
func Install(t *testing.T, files ...string) (node, dir string) {
	t.Helper()
	node, npm := Need(t, "node", "nodejs"), Need(t, "npm", "npm")
	return node, once(t, "npm ci for "+strings.Join(files, ", "), func(dir string) error {
		if err := copyFiles(dir, append(files, packageFiles...)...); err != nil {
			return err
		}
		name := []string{"npm ci"}
		for _, file := range packageFiles {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			name = append(name, string(text))
		}
		return kept(func(folder string) error {
			installed, err := filled(folder, func(folder string) error { return npmCI(npm, folder) })
			if err != nil {
				return err
			}
			return os.Symlink(filepath.Join(installed, "node_modules"), filepath.Join(dir, "node_modules"))
		}, name...)
	})
}

// packageFiles are what npm ci reads.
var packageFiles = []string{"package.json", "package-lock.json"}

// npmCI installs what the lock file here names in another directory.
func npmCI(npm, dir string) error {
	if err := copyFiles(dir, packageFiles...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*timeout)
	defer cancel()
	ci := exec.CommandContext(ctx, npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
	ci.Dir, ci.WaitDelay = dir, time.Second
	return output(ci)
}

func copyFiles(dir string, files ...string) error {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// output runs a command, whose output is part of the error.
func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
