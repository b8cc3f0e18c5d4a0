// Package examples_test types what the pages show on consoles, and compares what they show with what comes.
package examples_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial"
)

const repository = ".."

// terminalRole has this test binary become a shell with a machine of its own; see main.
const terminalRole = "HANDFAST_TEST_TERMINAL"

func TestMain(m *testing.M) {
	if os.Getenv(terminalRole) != "" {
		fmt.Fprintln(os.Stderr, terminal())
		os.Exit(1)
	}
	os.Exit(trial.Main(m))
}

// terminal becomes a shell. Loopback, all ports and all processes are its own, and so are /run, /srv and what it writes to
// /etc, /usr/local, /var/log and the repository.
// It returns only an error.
func terminal() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, up); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/srv"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	for i, dir := range []string{"/etc", "/usr/local", "/var/log", os.Getenv("REPOSITORY")} {
		upper, work := fmt.Sprintf("/run/upper%d", i), fmt.Sprintf("/run/work%d", i)
		if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	unix.Close(s)
	os.Unsetenv(terminalRole)
	return syscall.Exec("/bin/sh", []string{"sh"}, os.Environ())
}

// step is a command of a console, and what the page shows of its output.
type step struct {
	command string
	output  []string
}

// consoles returns the blocks of a page that show commands.
func consoles(text string) (all [][]step) {
	var block []step
	end := func() {
		if len(block) > 0 {
			all = append(all, block)
		}
		block = nil
	}
	fenced := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "```") {
			fenced = strings.HasPrefix(line, "```console")
			end()
			continue
		}
		if !fenced && line != "" {
			indented, is := strings.CutPrefix(line, "    ")
			if !is {
				end()
				continue
			}
			line = indented
		}
		if command, is := strings.CutPrefix(line, "$ "); is {
			block = append(block, step{command: command})
		} else if len(block) > 0 && line != "" {
			last := &block[len(block)-1]
			last.output = append(last.output, line)
		}
	}
	end()
	return all
}

// page is where the consoles of a page are typed.
type page struct {
	folder string // of the repository; "": the page's own
	before string // what the reader has, as commands of the shell
}

// typed are the pages whose consoles TestConsoles types.
var typed = map[string]page{
	"README.md":                 {folder: "examples/hello"},
	"cmd/handfast/CONCEPTS.md":  {},
	"cmd/handfast/OPERATING.md": {before: `ln -s "$HTTP" server`},
	"cmd/handfast/SESSIONS.md":  {before: `ln -s "$HTTP" server`},
	"examples/node/README.md":   {folder: "examples/hello", before: "cp hello.js server.js; export PORT=3000"},
	"examples/proxies/README.md": {folder: "examples/servers", before: `mkdir bin /etc/handfast; ln -s "$HTTP" bin/http; nginx
printf '173.245.48.0/20\n173.245.48.0/33\n' > /etc/handfast/cloudflare`},
	"examples/servers/README.md": {},
	"worker/README.md":           {before: `mkdir /srv/hello; cd /srv/hello; awk '/^` + "```" + `go/ {on = 1; next} /^` + "```" + `/ {on = 0} on' "$REPOSITORY/worker/README.md" > main.go`},
}

// elsewhere are the consoles that are not typed here, by page and the beginning of a command of theirs, and why not: a test
// of the page's folder that does the same, or what no test can have.
var elsewhere = []struct{ page, command, test, why string }{
	{"cmd/handfast/OPERATING.md", "mv handfast.new", "TestUpgradeFromPrevious", "another version of the program"},
	{"cmd/handfast/OPERATING.md", "handfast run --listen :8080 --directory", "TestDirectory", "a folder for each version"},
	{"cmd/handfast/README.md", "handfast check", "TestCheckMachine", "what is missing on a machine"},
	{"cmd/handfast/README.md", "HANDFAST_MAX_RETRIES=7", "TestCheckIsRun", "what is missing on a machine"},
	{"cmd/handfast/SESSIONS.md", "handfast run --listen :8080 --key cookie", "", "three servers of the reader; TestReadmeCommands has their flags"},
	{"examples/deepstream/README.md", "npm ci", "TestDeepstream", "packages of npm, and Redis"},
	{"examples/deepstream/README.md", "node client.js", "TestDeepstream", "as above"},
	{"examples/flask-socketio/README.md", "handfast run", "TestGunicorn", "many rounds, and a reload in one"},
	{"examples/flask-socketio/README.md", "python3 clients.py", "TestGunicorn", "as above"},
	{"examples/mcp/README.md", "npm ci", "TestSessions", "packages of npm"},
	{"examples/mcp/README.md", "node clients.js", "TestSessions", "as above"},
	{"examples/socketio/README.md", "npm ci", "TestSessions", "packages of npm"},
	{"examples/socketio/README.md", "node clients.js http://127.0.0.1:3000", "TestSessions", "ten reloads, by make soak"},
	{"examples/socketio/README.md", "redis-server", "TestRedisAdapter", "packages of npm, and Redis"},
	{"examples/socketio/README.md", "node clients.js http://127.0.0.1 ", "TestSessions", "a proxy, by make soak"},
	{"examples/socketio/README.md", "handfast run --listen 127.0.0.1:3000", "TestSticky", "packages of npm"},
	{"examples/sockjs/README.md", "npm ci", "TestDirect", "packages of npm"},
	{"examples/sockjs/README.md", "node client.js", "TestDirect", "as above"},
	{"examples/sockjs/README.md", "PORT=8080 handfast run --listen 127.0.0.1:8080", "TestNginx", "packages of npm, and a proxy"},
	{"examples/starters/README.md", "npm install", "TestStarters", "packages of npm"},
	{"examples/sticky-listen/README.md", "npm ci", "TestSticky", "packages of npm"},
	{"examples/sticky-listen/README.md", "node cluster.js", "TestSticky", "as above"},
	{"examples/sticky-listen/README.md", "handfast run", "TestReload", "as above"},
	{"examples/tomcat/README.md", "mkdir logs", "TestSessions", "Tomcat takes long to start: make soak"},
	{"examples/tomcat/README.md", "for i in", "TestSessions", "as above"},
}

// TestConsoles: what pages show on a console is what comes when it is typed. Numbers that nobody can know may be others.
func TestConsoles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a machine of its own for each page takes root")
	}
	used := make([]bool, len(elsewhere))
	for name, text := range texts(t) {
		var todo [][]step
		for _, block := range consoles(text) {
			at := slices.IndexFunc(block, func(s step) bool { return skipped(name, s, used) })
			if at < 0 {
				todo = append(todo, block)
			}
		}
		where, known := typed[name]
		if len(todo) == 0 {
			if known {
				t.Errorf("%s has no console that is typed", name)
			}
			continue
		}
		if !known {
			t.Errorf("%s: nobody says where its console is typed, or why not: %s", name, todo[0][0].command)
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			walk(t, name, where, todo)
		})
	}
	for i, e := range elsewhere {
		if !used[i] {
			t.Errorf("%s has no console with %q", e.page, e.command)
		}
		if e.test != "" && !hasTest(t, e.page, e.test) {
			t.Errorf("%s, %q: there is no %s", e.page, e.command, e.test)
		}
	}
}

// skipped reports whether the console with this step is one of elsewhere, which are then used.
func skipped(name string, s step, used []bool) bool {
	for i, e := range elsewhere {
		if e.page == name && strings.HasPrefix(s.command, e.command) {
			used[i] = true
			return true
		}
	}
	return false
}

// hasTest reports whether a test of this name is in the folder of a page.
func hasTest(t *testing.T, page, name string) bool {
	files, err := filepath.Glob(filepath.Join(repository, filepath.Dir(page), "*_test.go"))
	check(t, err)
	return slices.ContainsFunc(files, func(file string) bool {
		source, err := os.ReadFile(file)
		check(t, err)
		return strings.Contains(string(source), "\nfunc "+name+"(")
	})
}

// texts returns the pages that people read, by their paths in the repository.
func texts(t *testing.T) map[string]string {
	found := make(map[string]string)
	check(t, filepath.WalkDir(repository, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "node_modules" || strings.HasPrefix(entry.Name(), ".") && name != repository) {
			return fs.SkipDir
		}
		if filepath.Ext(name) != ".md" {
			return nil
		}
		relative, err := filepath.Rel(repository, name)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(name)
		found[relative] = string(text)
		return err
	}))
	return found
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell is a terminal in which one types, and looks at what comes.
type shell struct {
	t    *testing.T
	page string
	dir  string // of outputs
	in   *os.File
	done *bufio.Reader // a line with the exit status of each command
	log  string        // file of the handfast that runs; "" if none does
}

// walk types the consoles of a page, one after the other.
func walk(t *testing.T, name string, where page, blocks [][]step) {
	sh := open(t, name)
	folder := where.folder
	if folder == "" {
		folder = filepath.Dir(name)
	}
	sh.do("cd $REPOSITORY/" + folder)
	sh.do(where.before)
	for _, block := range blocks {
		for _, s := range block {
			sh.step(s)
		}
	}
	sh.stop()
}

// open starts a shell for a page, which ends with the test, and all that it has started with it.
func open(t *testing.T, name string) *shell {
	sh := &shell{t: t, page: name, dir: t.TempDir()}
	bin := filepath.Join(sh.dir, "bin")
	check(t, os.Mkdir(bin, 0o755))
	check(t, os.Symlink(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), filepath.Join(bin, "handfast")))
	check(t, os.WriteFile(filepath.Join(sh.dir, ".curlrc"), []byte("silent\nshow-error\n"), 0o644))
	self, err := os.Executable()
	check(t, err)
	root, err := filepath.Abs(repository)
	check(t, err)
	cache, err := os.UserCacheDir()
	check(t, err)
	gopath, err := exec.Command("go", "env", "GOPATH").Output()
	check(t, err)

	cmd := exec.Command(self)
	cmd.Env = []string{
		"HANDFAST_EBPF=off", // pages show what is seen by those who may not load it, as most
		terminalRole + "=1", "PATH=" + bin + ":/usr/bin:/bin:/usr/sbin:/sbin:" + os.Getenv("PATH"), "HOME=" + sh.dir, "REPOSITORY=" + root,
		"HTTP=" + trial.Build(t, "github.com/handfast/handfast/examples/http"),
		"GOCACHE=" + filepath.Join(cache, "go-build"), "GOPATH=" + strings.TrimSpace(string(gopath)), "GOPROXY=off", "GOSUMDB=off",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	in, write, err := os.Pipe()
	check(t, err)
	read, out, err := os.Pipe()
	check(t, err)
	cmd.Stdin, cmd.ExtraFiles = in, []*os.File{out}
	sh.in, sh.done = write, bufio.NewReader(read)
	t.Cleanup(func() { write.Close(); read.Close() })
	trial.StartCmd(t, cmd)
	in.Close()
	out.Close()
	sh.do("umask 022")
	return sh
}

// try types a command, and returns its output and exit status.
func (sh *shell) try(command string) (output, status string) {
	sh.t.Helper()
	file := filepath.Join(sh.dir, "output")
	fmt.Fprintf(sh.in, "{ %s\n} > %s 2>&1 3>&- < /dev/null; echo $? >&3\n", command, file)
	status, err := sh.done.ReadString('\n')
	if err != nil {
		sh.t.Fatalf("%s: %s: %v", sh.page, command, err)
	}
	text, err := os.ReadFile(file)
	check(sh.t, err)
	return string(text), strings.TrimSpace(status)
}

// do types what has to succeed.
func (sh *shell) do(command string) {
	sh.t.Helper()
	if output, status := sh.try(command + "\n:"); status != "0" {
		sh.t.Fatalf("%s: %s: status %s\n%s", sh.page, command, status, output)
	}
}

// runs is the beginning of a command that runs until it is stopped.
var runs = regexp.MustCompile(`^(\w+=\S+ )*handfast run `)

// step types a command of the page, and compares.
func (sh *shell) step(s step) {
	sh.t.Helper()
	command := strings.ReplaceAll(s.command, "/path/to/your/clone", "$REPOSITORY")
	if runs.MatchString(command) {
		sh.stop()
		sh.run(command, s.output)
		return
	}
	output, status := sh.try(command)
	if len(s.output) == 0 && status != "0" {
		sh.t.Fatalf("%s: %s: status %s\n%s\n%s", sh.page, s.command, status, output, sh.logged())
	}
	if len(s.output) > 0 && !like(s.output, lines(output)) {
		sh.t.Fatalf("%s: %s\n%s\nbut the page shows\n%s\n%s", sh.page, s.command, output, strings.Join(s.output, "\n"), sh.logged())
	}
}

// run starts handfast as in another terminal, waits until it serves, and wants the lines of its log that the page shows.
func (sh *shell) run(command string, shown []string) {
	sh.t.Helper()
	sh.log = filepath.Join(sh.dir, "log")
	command = strings.TrimRight(command, "& ")
	at := strings.Index(command, "handfast run")
	sh.do(fmt.Sprintf("%s %s > %s 2>&1 3>&- & handfast=$!", command[:at], command[at:], sh.log))
	trial.Eventually(sh.t, command, func() bool {
		_, status := sh.try("kill -0 $handfast && handfast status --ready")
		return status == "0"
	})
	for _, line := range shown {
		want := []string{line}
		trial.Eventually(sh.t, fmt.Sprintf("%s: a line of the log like %q", sh.page, line), func() bool {
			return slices.ContainsFunc(lines(sh.logged()), func(got string) bool { return like(want, []string{got}) })
		})
	}
}

func (sh *shell) logged() string {
	if sh.log == "" {
		return ""
	}
	text, err := os.ReadFile(sh.log)
	check(sh.t, err)
	return string(text)
}

// stop ends the handfast that runs, in order.
func (sh *shell) stop() {
	if sh.log == "" {
		return
	}
	if _, status := sh.try("kill $handfast; wait $handfast"); status != "0" {
		sh.t.Errorf("%s: handfast ends with status %s\n%s", sh.page, status, sh.logged())
	}
	sh.log = ""
}

// What is another one each time: moments, process ids, durations, tokens and counts.
var (
	moment   = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`)
	pid      = regexp.MustCompile(`(pid[= ]|process_id:)\d+|worker \d+ `)
	duration = regexp.MustCompile(`\b(\d+(\.\d+)?(h|ms|m|s))+\b`)
	token    = regexp.MustCompile(`\b[a-z2-7]{26}\b`)
	ready    = regexp.MustCompile(`(worker ready: slot=)\d+`)
	row      = regexp.MustCompile(`^(\d+ +(?:serving|draining|standby|lingering|starting)) .*`)
	blanks   = regexp.MustCompile(` {2,}`)
)

// plain is a line without that.
func plain(line string) string {
	line = moment.ReplaceAllString(line, "...")
	line = pid.ReplaceAllString(line, "$1# ")
	line = duration.ReplaceAllString(line, "#s")
	line = token.ReplaceAllString(line, "#")
	line = ready.ReplaceAllString(line, "$1#")
	line = row.ReplaceAllString(line, "$1")
	line = strings.Replace(line, "RATE/S", "", 1) // it is there when handfast has looked twice
	return strings.TrimSpace(blanks.ReplaceAllString(line, " "))
}

// lines are those of a text, without empty ones.
func lines(text string) (all []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// like reports whether lines are as shown, where "..." stands for any text in a line, or for any lines.
func like(shown, lines []string) bool {
	if len(shown) == 0 {
		return len(lines) == 0
	}
	if strings.TrimSpace(shown[0]) == "..." {
		for i := range len(lines) + 1 {
			if like(shown[1:], lines[i:]) {
				return true
			}
		}
		return false
	}
	if len(lines) == 0 {
		return false
	}
	pattern := strings.ReplaceAll(regexp.QuoteMeta(plain(shown[0])), `\.\.\.`, ".*")
	return regexp.MustCompile("^"+pattern+"$").MatchString(plain(lines[0])) && like(shown[1:], lines[1:])
}
