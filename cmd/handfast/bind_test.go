package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
)

// runs runs `handfast run` as it is typed, until the test ends. Admin is off.
func runs(t *testing.T, args ...string) *instance {
	t.Helper()
	return runsUnder(t, nil, args...)
}

// runsUnder is runs under a command that becomes what follows it.
func runsUnder(t *testing.T, wrapper []string, args ...string) *instance {
	t.Helper()
	self := itself(t)
	args = slices.Concat(wrapper, []string{self, "run", "--log-json", "--stop-timeout", "1s", "--kill-timeout", "1s"}, args)
	b := newInstance(t, args[0], args[1:]...)
	b.cmd.Env = append(os.Environ(), testRole+"=1", "PYTHONUNBUFFERED=1")
	b.launch()
	return b
}

// says waits for a line of the log with these words in it.
func (b *instance) says(message string, words ...string) {
	b.t.Helper()
	text := b.await(message).text
	for _, word := range words {
		if !strings.Contains(text, word) {
			b.t.Errorf("%s does not say %q: %s", message, word, text)
		}
	}
}

// portOf returns the port of an address.
func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// pythonServes is what runs a server on several addresses, HOST/PORT, which follow. One of IPv6 takes no IPv4 if it begins
// with "only". It starts in half the time of one with http.server.
var pythonServes = []string{"/usr/bin/python3", "-IS", "-c", `
import select, socket, sys
def listen(at):
    host, port = at.split('/')
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if host.startswith('only'): s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((host.removeprefix('only'), int(port)))
    s.listen(5)
    return s
listeners = [listen(at) for at in sys.argv[1:]]
while True:
    for s in select.select(listeners, [], [])[0]:
        c, _ = s.accept()
        c.recv(65536)
        c.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok')
        c.close()
`}

// nodeServes is the same in Node, on one address.
var nodeServes = []string{"node", "-e", `const [host, port] = process.argv[1].split('/'); require('http').createServer((req, res) => res.end('ok')).listen(+port, host)`, "--"}

// Row C4: a server that listens on another port, or another address, is named within seconds, with
// both addresses and the flag, whatever its link.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		flags, program []string
		host           string
	}{
		"any":            {nil, pythonServes, "127.0.0.1"},
		"any, all":       {nil, pythonServes, "::"},
		"any, injection": {[]string{"--route", "master", "--worker-link", "any"}, pythonServes, "127.0.0.1"},
		"activation":     {[]string{"--worker-link", "activation"}, pythonServes, "127.0.0.1"},
		"native":         {[]string{"--worker-link", "native"}, pythonServes, "127.0.0.1"},
		"node":           {nil, nodeServes, "127.0.0.1"},
		"node, master":   {[]string{"--route", "master"}, nodeServes, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own, port := trial.FreeAddress(t), portOf(t, trial.FreeAddress(t))
			args := append([]string{"--workers", "1", "--listen", own}, test.flags...)
			args = append(append(append(args, "--"), test.program...), test.host+"/"+port)
			listens := net.JoinHostPort(test.host, port)
			if test.host == "::" {
				listens = ":" + port
			}
			runs(t, args...).says("worker listens elsewhere", `"handfast":"`+own+`"`, fmt.Sprintf(`"worker":%q`, listens), "--listen "+listens, "port "+portOf(t, own))
		})
	}
	t.Run("the same port", func(t *testing.T) {
		t.Parallel()
		own := trial.FreeAddress(t)
		listens := "[::1]:" + portOf(t, own)
		b := runs(t, slices.Concat([]string{"--workers", "1", "--listen", own, "--"}, pythonServes, []string{"::1/" + portOf(t, own)})...)
		b.says("worker listens elsewhere", fmt.Sprintf(`"worker":%q`, listens), "--listen "+listens)
	})
}

// Row B2: a server for localhost does not become public because of a --listen that leaves the host
// out: it is refused within seconds, and the log names both addresses and both remedies.
func TestNarrower(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		program     []string
		host, flags string
	}{
		"any":             {pythonServes, "127.0.0.1", ""},
		"any, IPv6":       {pythonServes, "::1", ""},
		"any, injection":  {pythonServes, "127.0.0.1", "--route master --worker-link any"},
		"node":            {nodeServes, "127.0.0.1", ""},
		"node, localhost": {nodeServes, "localhost", ""},
		"node, master":    {nodeServes, "127.0.0.1", "--route master"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := portOf(t, trial.FreeAddress(t))
			args := append([]string{"--workers", "1", "--listen", ":" + port}, strings.Fields(test.flags)...)
			args = append(append(append(args, "--"), test.program...), test.host+"/"+port)
			b := runs(t, args...)
			at := net.JoinHostPort(test.host, port)
			if test.host == "localhost" {
				at = ":" + port
			}
			b.says("worker takes no more connections", at+" only, handfast on [::]:"+port, "--listen ", "have the worker listen on ")
			if ready := b.log("worker ready"); len(ready) > 0 {
				t.Errorf("it serves: %s", ready[0].text)
			}
		})
	}
}

// network is a network namespace of its own for what follows, with a loopback interface.
func network(t *testing.T, setup string) []string {
	t.Helper()
	for _, program := range []string{"unshare", "nsenter", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root makes network namespaces")
	}
	return []string{"unshare", "--net", "sh", "-ec", "ip link set lo up; " + setup + ` exec "$0" "$@"`}
}

// within runs a command in the network namespace of a balancer and returns what it writes.
func (b *instance) within(command ...string) string {
	b.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(b.cmd.Process.Pid), "-n"}, command...)...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%v: %v: %s", command, err, out)
	}
	return string(out)
}

// Row D12: an address that comes a little later, or is tentative, is waited for; with --freebind it
// is listened on at once. By both routes.
func TestAddressComes(t *testing.T) {
	t.Parallel()
	testworker := []string{trial.Build(t, testWorker), "http"}
	const notThere = "address is not there yet, trying again"
	// Duplicate address detection asks five times, a second apart.
	const tentative = "ip link add v0 type veth peer name v1; echo 5 > /proc/sys/net/ipv6/conf/v0/dad_transmits; ip link set v0 up; ip link set v1 up; ip addr add fd09::9/64 dev v0;"
	for name, test := range map[string]struct{ route, setup, listen, why string }{
		"kernel":            {"kernel", "", "10.9.9.9:8080", "no interface has the address"},
		"master":            {"master", "", "10.9.9.9:8080", "no interface has the address"},
		"kernel, tentative": {"kernel", tentative, "[fd09::9]:8080", "tentative"},
		"master, tentative": {"master", tentative, "[fd09::9]:8080", "tentative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := runsUnder(t, network(t, test.setup), append([]string{"--workers", "1", "--route", test.route, "--listen", test.listen, "--"}, testworker...)...)
			b.says(notThere, test.why, "--freebind", test.listen)
			if test.setup == "" {
				b.within("ip", "addr", "add", "10.9.9.9/32", "dev", "lo")
			}
			b.await("worker ready")
			if n := len(b.log(notThere)); n != 1 {
				t.Errorf("it is said %d times", n)
			}
		})
	}
	for _, route := range []string{"kernel", "master"} {
		t.Run(route+", freebind", func(t *testing.T) {
			t.Parallel()
			b := runsUnder(t, network(t, ""), append([]string{"--workers", "2", "--route", route, "--freebind", "--listen", "10.9.9.9:8080", "--listen", "[fd09::9]:8080", "--"}, testworker...)...)
			b.awaitCount("worker ready", 2)
			b.within("ip", "addr", "add", "10.9.9.9/32", "dev", "lo")
			b.within("ip", "addr", "add", "fd09::9/128", "dev", "lo")
			for _, at := range []string{"10.9.9.9", "[fd09::9]"} {
				if out := b.within("curl", "-sS", "http://"+at+":8080/"); !strings.Contains(out, "slot=") {
					t.Error(out)
				}
			}
			if waits := b.log(notThere); len(waits) > 0 {
				t.Errorf("it waits: %s", waits[0].text)
			}
		})
	}
}

func TestIPv6Flags(t *testing.T) {
	const line = "fd090000000000000000000000000009 0a 40 00 c8       v0"
	for host, want := range map[string]bool{"fd09::9": true, "fd09::9%v0": true, "fd09::9%v1": false, "fd09::8": false, "::ffff:1.2.3.4": false, "1.2.3.4": false, "name": false} {
		if flags, ok := ipv6Flags(line, host); ok != want || ok && flags != 0xc8 {
			t.Errorf("%s: %x, %v", host, flags, ok)
		}
	}
	for _, bad := range []string{"", "fd09 0a 40 00 c8 v0", "zz090000000000000000000000000009 0a 40 00 c8 v0"} {
		if _, ok := ipv6Flags(bad, "fd09::9"); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}
