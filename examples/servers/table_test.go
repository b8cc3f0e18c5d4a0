package servers_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/handfast/handfast/examples/trial"
)

var (
	python  = [2]string{"/usr/bin/python3", "python3"}
	runsApp = [2]string{"gunicorn", "gunicorn"}
)

// servers are those of README.md.
var servers = []*server{
	{
		name: "gunicorn", flags: "--listen :8080", link: "any",
		command: "gunicorn -b :8080 app:app", needs: [][2]string{runsApp},
	},
	{
		name: "uvicorn", flags: "--listen :8080", link: "any", ends: hasty,
		command: "/usr/bin/python3 -m uvicorn --port 8080 --host 0.0.0.0 --no-access-log asgi:app", needs: [][2]string{python},
		build: needUvicorn,
	},
	{
		name: "nginx", flags: "--listen :8080", link: "any",
		command: "nginx -p . -c nginx.conf", needs: [][2]string{{"nginx", "nginx"}},
	},
	{
		name: "apache2", flags: "--listen :8080", link: "any",
		command: "apache2 -d . -f apache.conf -DFOREGROUND", needs: [][2]string{{"apache2", "apache2"}},
		build: func(t *testing.T, dir string) {
			check(t, os.Mkdir(filepath.Join(dir, "www"), 0o755))
			check(t, os.WriteFile(filepath.Join(dir, "www", "who"), []byte("see the header"), 0o644))
		},
	},
	{
		name: "redis", flags: "--listen :8080", link: "any", ends: abrupt,
		command: "redis-server --port 8080 --protected-mode no --save ", needs: [][2]string{{"redis-server", "redis-server"}},
		ask: askRedis,
	},
	{
		name: "haproxy", flags: "--listen :8080", link: "any",
		command: "haproxy -db -f haproxy.cfg", needs: [][2]string{{"haproxy", "haproxy"}},
	},
	{
		name: "php-fpm", flags: "--listen :8080", link: "any",
		command: "php-fpm8.2 -n -F -p . -y php-fpm.conf", needs: [][2]string{{"php-fpm8.2", "php-fpm"}},
		ask: askFastCGI, logged: "client=%v\n", log: "php-fpm.access.log",
	},
	{
		name: "php", flags: "--listen :8080", link: "any", ends: abrupt,
		command: "php -n -q -S 0.0.0.0:8080 who.php", needs: [][2]string{{"php", "php-cli"}},
	},
	{
		name: "http.server", flags: "--listen :8080", link: "any", ends: abrupt,
		command: "/usr/bin/python3 -m http.server --directory /proc/self 8080", needs: [][2]string{python},
		ask: askFiles, logged: "%v - - [",
	},
	{
		name: "java", flags: "--listen :8080", link: "any",
		command: "java -cp . Server 8080", needs: [][2]string{{"java", "default-jre-headless"}, {"javac", "default-jdk-headless"}},
		build: putJava,
	},
	{
		name: "go", flags: "--listen :8080", link: "any",
		command: "./server :8080", build: putGo,
	},
	{
		name: "node", flags: "--listen :8080", link: "node",
		command: "node server.js", needs: [][2]string{{"node", "nodejs"}},
	},
	{
		name: "node-any", flags: "--listen :8080 --worker-link any", link: "any",
		command: "node server.js", needs: [][2]string{{"node", "nodejs"}},
	},
}

// inherit are those that can take the slot's listener as systemd would pass it.
var inherit = []*server{
	{
		name: "gunicorn", flags: activation, link: "activation",
		command: "gunicorn app:app", needs: [][2]string{runsApp},
	},
	{
		name: "uvicorn", flags: activation, link: "activation", ends: hasty,
		command: "/usr/bin/python3 -m uvicorn --fd 3 --no-access-log asgi:app", needs: [][2]string{python},
		build: needUvicorn,
	},
	{
		name: "nginx", flags: activation, link: "activation",
		command: "nginx -p . -c nginx.conf", needs: [][2]string{{"nginx", "nginx"}},
	},
	{
		name: "haproxy", flags: activation, link: "activation",
		command: "haproxy -db -f haproxy.cfg", needs: [][2]string{{"haproxy", "haproxy"}},
		replace: [2]string{"bind :8080", "bind fd@3"},
	},
	{
		name: "php-fpm", flags: activation, link: "activation",
		command: "php-fpm8.2 -n -F -p . -y php-fpm.conf", needs: [][2]string{{"php-fpm8.2", "php-fpm"}},
		ask: askFastCGI, logged: "client=%v\n", log: "php-fpm.access.log",
	},
	{
		name: "go", flags: activation, link: "activation",
		command: "./server", build: putGo,
	},
	{
		name: "node", flags: activation, link: "activation",
		command: "node server.js", needs: [][2]string{{"node", "nodejs"}},
	},
}

const activation = "--listen 0.0.0.0:8080 --worker-link activation"

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// askHTTP makes one HTTP request. The answer is in a header or else in the body.
func askHTTP(c net.Conn) (string, error) {
	if err := sendRequest(c, "/who"); err != nil {
		return "", err
	}
	return readHTTP(c)
}

func readHTTP(c net.Conn) (string, error) {
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if who := response.Header.Get("X-Who"); who != "" {
		return who, err
	}
	return string(body), err
}

func sendRequest(c net.Conn, path string) error {
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", path)
	return err
}

// askFiles asks a server of the files in /proc/self, whose length they say is 0. The client's
// address is only in its log.
func askFiles(c net.Conn) (string, error) {
	if err := sendRequest(c, "/stat"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	_, stat, _ := strings.Cut(string(text), "\r\n\r\n")
	pid, _, _ := strings.Cut(stat, " ") // man 5 proc_pid_stat
	return fmt.Sprintf("pid=%s client=%s", pid, clientOf(c)), err
}

func clientOf(c net.Conn) string { return c.LocalAddr().(*net.TCPAddr).IP.String() }

var redisSays = regexp.MustCompile(`(?s)\nprocess_id:(\d+)\r\n.* addr=([0-9.]+):`)

func askRedis(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "INFO server\r\nCLIENT INFO\r\nQUIT\r\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	found := redisSays.FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("redis answers %.100q, error %w", text, err)
	}
	return fmt.Sprintf("pid=%s client=%s", found[1], found[2]), nil
}

// askFastCGI makes one FastCGI request, which names the client: the program is told no other. The
// address that php-fpm sees is only in its log.
func askFastCGI(c net.Conn) (string, error) {
	var params []byte
	for _, p := range [][2]string{{"REQUEST_METHOD", "GET"}, {"SCRIPT_FILENAME", "who.php"}, {"REMOTE_ADDR", clientOf(c)}} {
		params = append(params, byte(len(p[0])), byte(len(p[1])))
		params = append(append(params, p[0]...), p[1]...)
	}
	record := func(kind byte, body []byte) []byte {
		head := []byte{1, kind, 0, 1, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(head[4:], uint16(len(body)))
		return append(head, body...)
	}
	const begin, end, param, stdin, stdout = 1, 3, 4, 5, 6
	request := record(begin, []byte{0, 1, 0, 0, 0, 0, 0, 0})
	request = append(request, record(param, params)...)
	request = append(request, record(param, nil)...)
	request = append(request, record(stdin, nil)...)
	if _, err := c.Write(request); err != nil {
		return "", err
	}
	var out bytes.Buffer
	for r := bufio.NewReader(c); ; {
		head := make([]byte, 8)
		if _, err := io.ReadFull(r, head); err != nil {
			return "", err
		}
		body := make([]byte, int(binary.BigEndian.Uint16(head[4:]))+int(head[6]))
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		switch head[1] {
		case stdout:
			out.Write(body[:len(body)-int(head[6])])
		case end:
			_, who, _ := strings.Cut(out.String(), "\r\n\r\n")
			return who, nil
		}
	}
}

func needUvicorn(t *testing.T, _ string) {
	if exec.Command(python[0], "-c", "import uvicorn").Run() == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no uvicorn here")
	}
	t.Skip("uvicorn is not installed; apt-get install python3-uvicorn")
}

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

func putGo(t *testing.T, dir string) {
	server := trial.Build(t, "github.com/handfast/handfast/examples/servers/plain")
	check(t, os.Symlink(server, filepath.Join(dir, "server")))
}

func putJava(t *testing.T, dir string) {
	classes, err := filepath.Glob(filepath.Join(trial.CompileJava(t, "Server.java"), "*.class"))
	check(t, err)
	for _, path := range classes {
		check(t, os.Symlink(path, filepath.Join(dir, filepath.Base(path))))
	}
}

// TestReadme: the commands are those of README.md, and all files are there.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	check(t, err)
	for _, s := range append(servers, inherit...) {
		if !strings.Contains(string(text), "`"+s.command+"`") {
			t.Errorf("README.md does not say `%s`", s.command)
		}
	}
	files, err := os.ReadDir(".")
	check(t, err)
	for _, file := range files {
		name := file.Name()
		if !strings.HasSuffix(name, "_test.go") && name != "README.md" && !strings.Contains(string(text), "]("+name) {
			t.Errorf("README.md does not link %s", name)
		}
	}
}
