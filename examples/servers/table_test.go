package servers_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/master/link/foreigntest"
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
		build: needModule("uvicorn"),
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
		name: "redis", flags: "--listen :8080", link: "any",
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
		name: "php", flags: "--listen :8080", link: "any",
		command: "php -n -q -S 0.0.0.0:8080 who.php", needs: [][2]string{{"php", "php-cli"}},
	},
	{
		name: "http.server", flags: "--listen :8080", link: "any",
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
		build: needModule("uvicorn"),
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

// others are tried with fewer clients.
var others = []*server{
	{
		name: "puma", flags: v4, link: "any", light: true,
		command: "puma -b tcp://0.0.0.0:8080 -t 1:5 --quiet config.ru", needs: [][2]string{{"puma", "puma"}},
	},
	{
		name: "thin", flags: v4, link: "any", light: true,
		command: "thin -a 0.0.0.0 -p 8080 -R config.ru start", needs: [][2]string{{"thin", "thin"}},
	},
	{
		name: "unicorn", flags: v4, link: "any", light: true,
		command: "unicorn -l 0.0.0.0:8080 config.ru", needs: [][2]string{{"unicorn", "unicorn"}},
	},
	{
		name: "starman", flags: v4, link: "any", light: true,
		command: "starman --listen 0.0.0.0:8080 --workers 2 app.psgi", needs: [][2]string{{"starman", "starman"}},
	},
	{
		name: "mojolicious", flags: v4, link: "any", light: true,
		command: "perl mojo.pl daemon -l http://0.0.0.0:8080", needs: [][2]string{{"mojo", "libmojolicious-perl"}},
	},
	{
		name: "hypercorn", flags: v4, link: "any", light: true,
		command: "hypercorn -b 0.0.0.0:8080 asgi:app", needs: [][2]string{{"hypercorn", "python3-hypercorn"}},
	},
	{
		name: "daphne", flags: v4, link: "any", light: true, env: here,
		command: "daphne -b 0.0.0.0 -p 8080 asgi:app", needs: [][2]string{{"daphne", "daphne"}},
	},
	{
		name: "waitress", flags: v4, link: "any", light: true,
		command: "waitress-serve --listen=0.0.0.0:8080 app:app", needs: [][2]string{{"waitress-serve", "python3-waitress"}}, env: here,
	},
	{
		name: "tornado", flags: v4, link: "any", light: true,
		command: "/usr/bin/python3 tornado_app.py 8080", needs: [][2]string{python}, build: needModule("tornado"),
	},
	{
		name: "aiohttp", flags: v4, link: "any", light: true,
		command: "/usr/bin/python3 aiohttp_app.py 8080", needs: [][2]string{python}, build: needModule("aiohttp"),
	},
	{
		name: "twisted", flags: v4, link: "any", light: true, env: here,
		command: "twistd3 -n --pidfile= web --listen tcp:8080 --wsgi app.app", needs: [][2]string{{"twistd3", "python3-twisted"}},
	},
	{
		name: "uwsgi", flags: v4, link: "any", light: true,
		command: "uwsgi --http-socket 0.0.0.0:8080 --plugin python3 --master --processes 1 --wsgi app:app --die-on-term",
		needs:   [][2]string{{"uwsgi", "uwsgi-plugin-python3"}},
	},
	{
		name: "lighttpd", flags: v4, link: "any", light: true,
		command: "lighttpd -D -f lighttpd.conf", needs: [][2]string{{"lighttpd", "lighttpd"}}, ask: askKept,
	},
	{
		name: "caddy", flags: "--listen :8080", link: "any", light: true,
		command: "caddy run --config Caddyfile", needs: [][2]string{{"caddy", "caddy"}}, ask: askKept,
	},
	{
		name: "h2o", flags: v4, link: "any", light: true,
		command: "h2o -m worker -c h2o.conf", needs: [][2]string{{"h2o", "h2o"}}, ask: askKept,
	},
	{
		name: "tomcat", flags: v4, link: "any", light: true, slow: true,
		command: "/usr/share/tomcat10/bin/catalina.sh run", needs: [][2]string{{"/usr/share/tomcat10/bin/catalina.sh", "tomcat10"}},
		env: []string{"CATALINA_BASE=$DIR/tomcat"}, ask: askKept,
		build: putTomcat,
	},
	{
		name: "jetty", flags: v4, link: "any", light: true, slow: true,
		command: "java -jar /usr/share/jetty9/start.jar jetty.home=/usr/share/jetty9 jetty.base=$PWD --module=http jetty.http.host=0.0.0.0 jetty.http.port=8080",
		needs:   [][2]string{{"java", "default-jre-headless"}}, ask: askKept,
		build: needFile("/usr/share/jetty9/start.jar", "jetty9"),
	},
	{
		name: "memcached", flags: v4, link: "any", light: true,
		command: "memcached -u nobody -l 0.0.0.0 -p 8080", needs: [][2]string{{"memcached", "memcached"}}, ask: askMemcached,
	},
	{
		name: "mosquitto", flags: v4, link: "any", light: true,
		command: "mosquitto -c mosquitto.conf", needs: [][2]string{{"mosquitto", "mosquitto"}}, ask: askMQTT,
	},
	{
		name: "nats", flags: v4, link: "any", light: true,
		command: "nats-server -a 0.0.0.0 -p 8080", needs: [][2]string{{"nats-server", "nats-server"}}, ask: askNATS,
	},
	{
		name: "dovecot", flags: v4, link: "any", light: true,
		command: "dovecot -F -c dovecot.conf -o base_dir=$PWD/dovecot-{slot}-{generation}", needs: [][2]string{{"dovecot", "dovecot-imapd"}}, ask: askIMAP,
	},
	{
		name: "sshd", flags: v4, link: "any", light: true,
		command: "/usr/sbin/sshd -D -e -f sshd.conf -h $PWD/host_key", needs: [][2]string{{"sshd", "openssh-server"}, {"ssh-keygen", "openssh-client"}}, ask: askSSH,
		build: putHostKey,
	},
	{
		name: "postgresql", flags: v4 + " --user postgres", link: "any", light: true, alone: true,
		command: "/usr/lib/postgresql/15/bin/postgres -D data{slot} -h 0.0.0.0 -p 8080 -k .", needs: [][2]string{{"/usr/lib/postgresql/15/bin/postgres", "postgresql"}},
		ask: askPostgres, build: putDatabases,
	},
	{
		name: "prosody", flags: v4, link: "any", light: true,
		command: "prosody -F --config prosody.cfg.lua", needs: [][2]string{{"prosody", "prosody"}}, ask: askXMPP,
	},
	{
		name: "iperf3", flags: v4, link: "any", light: true,
		command: "iperf3 -s -4 -p 8080", needs: [][2]string{{"iperf3", "iperf3"}}, ask: askIperf,
	},
}

// v4 is for servers that listen on IPv4 only.
const v4 = "--listen 0.0.0.0:8080"

// here is where modules are looked for.
var here = []string{"PYTHONPATH=$DIR"}

func needModule(name string) func(*testing.T, string) {
	return func(t *testing.T, _ string) {
		if exec.Command(python[0], "-c", "import "+name).Run() != nil {
			missing(t, name+" is not installed; apt-get install python3-"+name)
		}
	}
}

func needFile(path, pkg string) func(*testing.T, string) {
	return func(t *testing.T, _ string) {
		if _, err := os.Stat(path); err != nil {
			missing(t, path+" is not there; apt-get install "+pkg)
		}
	}
}

// missing ends a test that lacks a program, which continuous integration must not.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// putTomcat makes the folders of a CATALINA_BASE.
func putTomcat(t *testing.T, dir string) {
	for _, name := range []string{"logs", "temp", "webapps", "work"} {
		check(t, os.MkdirAll(filepath.Join(dir, "tomcat", name), 0o755))
	}
}

// putHostKey makes the key of a host, and the folder that sshd wants to be there.
func putHostKey(t *testing.T, dir string) {
	check(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "host_key")).Run())
	check(t, os.MkdirAll("/run/sshd", 0o755))
}

// putDatabases makes one for each slot.
func putDatabases(t *testing.T, dir string) {
	postgres, err := user.Lookup("postgres")
	check(t, err)
	uid, _ := strconv.Atoi(postgres.Uid)
	gid, _ := strconv.Atoi(postgres.Gid)
	check(t, os.Chown(dir, uid, gid))
	for slot := range slots {
		data := filepath.Join(dir, fmt.Sprint("data", slot))
		init := exec.Command("/usr/lib/postgresql/15/bin/initdb", "-D", data, "-A", "trust", "--no-sync")
		init.Dir = dir
		init.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if text, err := init.CombinedOutput(); err != nil {
			t.Fatalf("initdb: %v\n%s", err, text)
		}
		rules, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		check(t, err)
		_, err = rules.WriteString("host all all 127.0.0.0/8 trust\n")
		check(t, err)
		check(t, rules.Close())
	}
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
	if response.StatusCode == http.StatusBadGateway {
		return "", errRefused
	}
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

// askFastCGI names the client in its request. The address that php-fpm sees is only in its log.
func askFastCGI(c net.Conn) (string, error) {
	return foreigntest.AskFastCGI(c, "who.php", clientOf(c))
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
	for _, s := range slices.Concat(servers, inherit, others) {
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
