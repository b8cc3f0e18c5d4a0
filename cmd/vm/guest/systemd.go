package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// service has systemd run the trials.
const service = `[Unit]
Description=Trials of handfast
[Service]
ExecStart=/usr/local/bin/guest systemd
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
OOMScoreAdjust=-900
[Install]
WantedBy=multi-user.target
`

// makeWay lays out a system from an archive, and has its systemd take the place of this process. It returns only if that failed.
func makeWay(system string) error {
	const root = "/new"
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	script := `mkdir -p ` + root + ` && mount -t tmpfs -o mode=755 none ` + root + ` && tar -xf ` + system + ` -C ` + root + ` && rm ` + system + ` &&
for module in /modules/*; do insmod $module || exit 1; done &&
cp /init ` + root + `/usr/local/bin/guest && cp /usr/bin/hello ` + root + `/usr/local/bin/hello && cp /*.deb /handfast.socket ` + root + ` &&
mkdir -p ` + root + `/etc/systemd/system/multi-user.target.wants && ln -s ../trials.service ` + root + `/etc/systemd/system/multi-user.target.wants/`
	busybox := exec.Command("/bin/busybox", "sh", "-c", script)
	busybox.Env = []string{"PATH=/bin:/usr/bin"}
	if said, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, said)
	}
	if said, err := busybox.CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, said)
	}
	if err := os.WriteFile(root+"/etc/systemd/system/trials.service", []byte(service), 0o644); err != nil {
		return err
	}
	return syscall.Exec("/bin/busybox", []string{"switch_root", root, "/sbin/init"}, []string{"TERM=dumb"})
}

// server is what handfast runs: a link to one of two programs, or to one that fails.
const server = "/usr/local/bin/server"

const (
	ordinary = "/usr/local/bin/guest" // knows nothing of handfast
	native   = "/usr/local/bin/hello"
	broken   = "/bin/false"
)

// A step is tried after those before it.
type step struct {
	name string
	do   func() error
}

var steps = []step{
	{"the package is installed, and starts nothing", install},
	{"systemd-analyze verify finds nothing", func() error { return verify("handfast.service") }},
	{"started: when systemctl returns, every slot serves", begin(ordinary, "listen: [\":80\"]\nworker-link: any\n")},
	{"rights and hardening are on, for the master and its workers", hardened},
	{"reloaded: nobody is refused", unhurt(reload)},
	{"a reload to a version that is broken fails, and the old one serves on", brokenReload},
	{"a worker's death: systemd has nothing to do", restarts(killWorker, 0)},
	{"upgraded by the package: the same workers, nobody is refused", unhurt(upgrade)},
	{"reloaded after the upgrade: nobody is refused", unhurt(reload)},
	{"killed: systemd starts it anew", restarts(func() error { return killMaster(syscall.SIGKILL) }, 1)},
	{"stopped by SIGSTOP: the watchdog has systemd start it anew", restarts(func() error { return killMaster(syscall.SIGSTOP) }, 1)},
	{"stopped: a request under way is finished", finish},
	{"native workers: started", begin(native, "listen: [\":80\"]\nworker-link: native\n")},
	{"native workers: reloaded, nobody is refused", unhurt(reload)},
	{"native workers: upgraded, nobody is refused", unhurt(func() error { return upgradeTo("1") })},
	{"started as root, with workers of another user", asRoot},
	{"counts of eBPF by the unit's lines for it", counts},
	{"native workers, socket activation: the first client starts it", activated(native, "worker-link: native\n")},
	{"native workers, socket activation: reloaded, nobody is refused", unhurt(reload)},
	{"native workers, socket activation: upgraded, nobody is refused", unhurt(func() error { return upgradeTo("2") })},
	{"native workers, socket activation: restarted, all who wait are served", unhurt(restart)},
	{"native workers, socket activation: killed, all who come then are served", restarts(func() error { return killMaster(syscall.SIGKILL) }, 1)},
	{"any server, socket activation: the first client starts it", activated(ordinary, "worker-link: any\n")},
	{"any server, socket activation: reloaded, nobody is refused", unhurt(reload)},
	{"any server, socket activation: restarted, all who wait are served", unhurt(restart)},
	{"the package is removed, and handfast has stopped", remove},
}

// trySystemd goes through the steps.
func trySystemd() (passed, failed int) {
	address = "127.0.0.1:80"
	os.Setenv("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("SYSTEMD_COLORS", "0")
	version, err := systemctl("--version")
	version, _, _ = strings.Cut(version, "\n")
	fmt.Println(version, err)
	for _, s := range steps {
		begun := time.Now()
		err := s.do()
		if err != nil {
			journal, _ := sh("journalctl", "--no-pager", "--output=cat", "--lines=40", "--unit=handfast", "--unit=handfast.socket")
			err = fmt.Errorf("%w\n%s", err, journal)
		}
		if report(fmt.Sprintf("%s, %.1f s", s.name, time.Since(begun).Seconds()), err) {
			passed++
		} else {
			failed++
		}
		if s.name == steps[2].name {
			exposure, err := sh("systemd-analyze", "--no-pager", "security", "handfast.service")
			fmt.Println(exposure, err)
		}
	}
	return passed, failed
}

func sh(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	stop := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer stop.Stop()
	said, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, said)
	}
	return strings.TrimSpace(string(said)), err
}

func systemctl(args ...string) (string, error) {
	return sh(append([]string{"systemctl", "--no-pager"}, args...)...)
}

// property of handfast's unit.
func property(name string) string {
	said, _ := systemctl("show", "--property="+name, "--value", "handfast.service")
	return said
}

func mainPID() int {
	pid, _ := strconv.Atoi(property("MainPID"))
	return pid
}

// status is what the running handfast says.
func status() (s struct {
	Version    string
	PID        int
	Ready      bool
	Generation int
	Route      string
	Slots      []struct {
		Worker     *struct{ PID int }
		Handshakes *uint64
	}
}, err error) {
	said, err := sh("handfast", "status", "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(said), &s)
}

// serving returns the processes of the workers in the slots.
func serving() (pids []int, err error) {
	s, err := status()
	for _, slot := range s.Slots {
		if slot.Worker == nil {
			return nil, errors.New("a slot has no worker")
		}
		pids = append(pids, slot.Worker.PID)
	}
	return pids, err
}

// verify has systemd look at a unit. What it says of the system's own units is not ours.
func verify(unit string) error {
	said, err := sh("systemd-analyze", "--man=no", "verify", unit)
	if err == nil && strings.Contains(said, "handfast") {
		err = errors.New(said)
	}
	return err
}

func install() error {
	if _, err := sh("dpkg", "--install", "/1.deb"); err != nil {
		return err
	}
	if s := property("ActiveState"); s != "inactive" {
		return fmt.Errorf("it is %s", s)
	}
	if _, err := sh("cp", "/handfast.socket", "/etc/systemd/system"); err != nil {
		return err
	}
	return verify("handfast.socket")
}

// configure says what handfast does at its next start.
func configure(program, config string) error {
	if err := point(program); err != nil {
		return err
	}
	config += "workers: 2\nprobation: 0s\ncommand: [" + server + ", serve, \":80\"]\nenv: [PORT=80]\n"
	return os.WriteFile("/etc/handfast/handfast.yaml", []byte(config), 0o644)
}

// point has server be a program.
func point(program string) error {
	os.Remove(server + ".new")
	return errors.Join(os.Symlink(program, server+".new"), os.Rename(server+".new", server))
}

// override adds lines to the unit's [Service]; none: takes them away again.
func override(lines string) error {
	const dir = "/etc/systemd/system/handfast.service.d"
	os.RemoveAll(dir)
	if lines != "" {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/trial.conf", []byte("[Service]\n"+lines), 0o644)); err != nil {
			return err
		}
	}
	_, err := systemctl("daemon-reload")
	return err
}

// first are the clients' slots.
var first map[string]string

// serves asks all clients.
func serves() (err error) {
	if s := property("ActiveState"); s != "active" {
		return fmt.Errorf("it is %s", s)
	}
	slots, err := askAll(first)
	if first == nil {
		first = slots
	}
	return err
}

// begin configures and starts it.
func begin(program, config string) func() error {
	return func() error {
		if err := configure(program, config); err != nil {
			return err
		}
		if _, err := systemctl("start", "handfast"); err != nil {
			return err
		}
		if s := property("StatusText"); s != "2 of 2 slots served, generation 1" {
			return fmt.Errorf("its status is %q", s)
		}
		return serves()
	}
}

// hardened looks at what the kernel says of the processes.
func hardened() error {
	pids, err := serving()
	if err != nil {
		return err
	}
	master := mainPID()
	for _, pid := range append(pids, master) {
		said, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		lines := strings.Split(strings.ReplaceAll(string(said), "\t", " "), "\n")
		const bindService = "0000000000000400"
		for _, want := range []string{"NoNewPrivs: 1", "Seccomp: 2", "CapBnd: " + bindService} {
			if !slices.Contains(lines, want) {
				return fmt.Errorf("process %d has no %s: %s", pid, want, said)
			}
		}
		if slices.Contains(lines, "Uid: 0 0 0 0") {
			return fmt.Errorf("process %d is root", pid)
		}
		// What it sees cannot be written.
		root := fmt.Sprintf("/proc/%d/root", pid)
		var fs unix.Statfs_t
		if err := unix.Statfs(root+"/etc", &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
			return fmt.Errorf("process %d may write to /etc: %v", pid, err)
		}
	}
	return nil
}

// unhurt does something while clients come, of which none may be refused.
func unhurt(do func() error) func() error {
	return func() error {
		var (
			clients         sync.WaitGroup
			over            atomic.Bool
			served, refused atomic.Int64
			wrong           atomic.Value
			longest         atomic.Int64
		)
		for i := range 4 {
			clients.Go(func() {
				for !over.Load() {
					begun := time.Now()
					if _, err := ask(fmt.Sprintf("127.0.0.%d", i+1)); err != nil {
						refused.Add(1)
						wrong.Store(err.Error())
					} else {
						served.Add(1)
					}
					longest.Store(max(longest.Load(), int64(time.Since(begun))))
				}
			})
		}
		err := until(func() error {
			if served.Load()+refused.Load() == 0 {
				return errors.New("nobody came")
			}
			return nil
		})
		if err == nil {
			err = do()
		}
		if err == nil {
			err = serves()
		}
		over.Store(true)
		clients.Wait()
		if n := refused.Load(); n > 0 {
			err = errors.Join(err, fmt.Errorf("%d clients refused: %v", n, wrong.Load()))
		}
		fmt.Printf("     %d requests, %d failed, the longest took %.1f s\n", served.Load()+refused.Load(), refused.Load(), time.Duration(longest.Load()).Seconds())
		return err
	}
}

func reload() error {
	before, err := status()
	if err != nil {
		return err
	}
	if _, err := systemctl("reload", "handfast"); err != nil {
		return err
	}
	after, err := status()
	if err == nil && (after.Generation <= before.Generation || after.PID != before.PID || !after.Ready) {
		err = fmt.Errorf("before %+v, after %+v", before, after)
	}
	return err
}

func brokenReload() error {
	before, err := serving()
	if err != nil {
		return err
	}
	if err := point(broken); err != nil {
		return err
	}
	if said, err := systemctl("reload", "handfast"); err == nil {
		return fmt.Errorf("it succeeds: %s", said)
	}
	if err := point(ordinary); err != nil {
		return err
	}
	if after, err := serving(); err != nil || !slices.Equal(before, after) {
		return fmt.Errorf("workers were %v and are %v, %v", before, after, err)
	}
	if s := property("StatusText"); !strings.Contains(s, "the reload failed") {
		return fmt.Errorf("its status is %q", s)
	}
	return serves()
}

func upgrade() error { return upgradeTo("2") }

// upgradeTo installs the other package, with a client who has a connection open meanwhile.
func upgradeTo(version string) error {
	before, err := serving()
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	pid := mainPID()
	if _, err := sh("dpkg", "--force-downgrade", "--install", "/"+version+".deb"); err != nil {
		return err
	}
	err = until(func() error {
		s, err := status()
		if err == nil && s.Version != "0.0."+version {
			err = fmt.Errorf("it is %s", s.Version)
		}
		return err
	})
	if err != nil {
		return err
	}
	if after, err := serving(); err != nil || !slices.Equal(before, after) {
		return fmt.Errorf("workers were %v and are %v, %v", before, after, err)
	}
	if now := mainPID(); now != pid {
		return fmt.Errorf("its process was %d and is %d", pid, now)
	}
	return talk(conn)
}

// talk asks on a connection that is open.
func talk(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	if !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200 ") {
		return fmt.Errorf("an open connection: %q, %v", answer[:n], err)
	}
	return nil
}

func killWorker() error {
	pids, err := serving()
	if err != nil {
		return err
	}
	return syscall.Kill(pids[0], syscall.SIGKILL)
}

func killMaster(sig syscall.Signal) error {
	pid := mainPID()
	if pid == 0 {
		return errors.New("it does not run")
	}
	return syscall.Kill(pid, sig)
}

// restarts does something after which systemd has started handfast anew n times, and all clients are served in their slots.
func restarts(do func() error, n int) func() error {
	return func() error {
		before, _ := strconv.Atoi(property("NRestarts"))
		if err := do(); err != nil {
			return err
		}
		err := until(func() error {
			now, _ := strconv.Atoi(property("NRestarts"))
			if state := property("SubState"); now != before+n || state != "running" {
				return fmt.Errorf("it is %s (%s), started anew %d times", state, property("Result"), now-before)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return serves()
	}
}

func restart() error {
	before := mainPID()
	if _, err := systemctl("restart", "handfast"); err != nil {
		return err
	}
	if now := mainPID(); now == before {
		return errors.New("it is the same process")
	}
	return nil
}

// finish stops it while a request is under way.
func finish() error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET /?for=3s HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	begun, err := conn.Read(answer)
	if err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	rest, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(rest), "done") {
		return fmt.Errorf("it got %q and %q, %v", answer[:begun], rest, err)
	}
	return nil
}

// stop stops handfast; no process may stay.
func stop() error {
	if _, err := systemctl("stop", "handfast"); err != nil {
		return err
	}
	if s, r := property("ActiveState"), property("Result"); s != "inactive" || r != "success" {
		return fmt.Errorf("it is %s (%s)", s, r)
	}
	if pids, err := workers(); err != nil || len(pids) > 0 {
		return fmt.Errorf("workers are left: %v, %v", pids, err)
	}
	return nil
}

// asRoot starts the master as root, and its workers as nobody, by the unit's lines for that.
func asRoot() error {
	if err := uncomment("DynamicUser=no", "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL", "CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_OVERRIDE"); err != nil {
		return err
	}
	if err := begin(ordinary, "listen: [\":80\"]\nworker-link: any\nuser: nobody\n")(); err != nil {
		return err
	}
	if err := unhurt(reload)(); err != nil {
		return err
	}
	pids, err := serving()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		said, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(said), "\nUid:\t65534\t65534\t") || !strings.Contains(string(said), "\nCapEff:\t0000000000000000\n") {
			return fmt.Errorf("worker %d is not nobody, without rights: %s, %v", pid, said, err)
		}
	}
	return nil
}

// counts has the kernel count, by the unit's lines for that.
func counts() error {
	if err := uncomment("AmbientCapabilities=CAP_BPF", "CapabilityBoundingSet=CAP_BPF", "SystemCallFilter=bpf", "Environment=HANDFAST_EBPF=on",
		"AmbientCapabilities=CAP_PERFMON", "CapabilityBoundingSet=CAP_PERFMON"); err != nil {
		return err
	}
	if err := begin(native, "listen: [\":80\"]\nworker-link: native\n")(); err != nil {
		return err
	}
	s, err := status()
	if err == nil && (len(s.Slots) != 2 || s.Slots[0].Handshakes == nil || *s.Slots[0].Handshakes == 0) {
		err = fmt.Errorf("the kernel counts nothing: %+v", s)
	}
	return err
}

// uncomment stops handfast, and has the unit's next start be with lines that are comments in it.
func uncomment(wanted ...string) error {
	if err := stop(); err != nil {
		return err
	}
	unit, err := os.ReadFile("/usr/lib/systemd/system/handfast.service")
	if err != nil {
		return err
	}
	for _, line := range wanted {
		if !strings.Contains(string(unit), "\n#"+line+"\n") {
			return fmt.Errorf("the unit does not speak of %s", line)
		}
	}
	return override(strings.Join(wanted, "\n") + "\n")
}

// activated has systemd listen, and handfast start with the first clients.
func activated(program, config string) func() error {
	return func() error {
		if _, err := systemctl("stop", "handfast.socket"); err != nil {
			return err
		}
		if err := errors.Join(stop(), override(""), configure(program, config)); err != nil {
			return err
		}
		if _, err := systemctl("start", "handfast.socket"); err != nil {
			return err
		}
		if s := property("ActiveState"); s != "inactive" {
			return fmt.Errorf("it is %s before anybody has come", s)
		}
		if _, err := ask("127.0.0.1"); err != nil {
			return err
		}
		if err := until(func() error {
			if s := property("ActiveState"); s != "active" {
				return fmt.Errorf("it is %s", s)
			}
			return nil
		}); err != nil {
			return err
		}
		return serves()
	}
}

func remove() error {
	if _, err := systemctl("stop", "handfast.socket"); err != nil {
		return err
	}
	if _, err := sh("dpkg", "--remove", "handfast"); err != nil {
		return err
	}
	if pids, err := workers(); err != nil || len(pids) > 0 {
		return fmt.Errorf("workers are left: %v, %v", pids, err)
	}
	if left, _ := filepath.Glob("/run/handfast/*"); len(left) > 0 {
		return fmt.Errorf("left: %q", left)
	}
	return nil
}
