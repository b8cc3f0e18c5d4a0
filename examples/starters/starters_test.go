// Package starters_test runs a Node server by what people start one with: each time without a flag,
// and right at the first try.
package starters_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/hash"
)

func TestMain(m *testing.M) { os.Exit(trial.Main(m)) }

// handfast returns `handfast run` for a command in the project's folder, for as many workers as
// Balance has.
func handfast(t *testing.T, dir, address string, flags []string, command ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(address)
	args := []string{"run", "--admin", "off", "--listen", address, "--workers", strconv.Itoa(trial.Workers), "--log-json"}
	cmd := exec.Command(trial.Build(t, "github.com/handfast/handfast/cmd/handfast"), slices.Concat(args, flags, []string{"--"}, command)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOST="+host, "PORT="+port, "NODE_ENV=", "NODE_OPTIONS=", "npm_config_update_notifier=false",
		"PATH="+filepath.Join(dir, "node_modules/.bin")+":"+os.Getenv("PATH"))
	return cmd
}

// TestStarters: whoever starts the program that listens, each client is served by one process, which
// is in its slot.
// Rows C1 and C2.
func TestStarters(t *testing.T) {
	node, dir := trial.Install(t, "app.js", "server.ts")
	app, err := os.ReadFile("app.js")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		link    string
		command []string
	}{
		{"any", []string{"npm", "start"}},
		{"any", []string{"npm", "run", "dev"}},
		{"any", []string{"npx", "tsx", "server.ts"}},
		{"any", []string{"tsx", "server.ts"}},
		{"any", []string{"nodemon", "app.js"}},
		{"any", []string{node, "node_modules/.bin/nodemon", "app.js"}},
		{"any", []string{"node", "--watch", "app.js"}},
		{"any", []string{"node", "-e", string(app)}},
		{"any", []string{"sh", "-c", "node app.js; true"}},
		{"node", []string{"node", "--import", "tsx", "server.ts"}},
		{"node", []string{"env", "X=1", "node", "app.js"}},
		{"node", []string{"sh", "-c", "node app.js"}},
		{"node", []string{"sh", "-c", `cd . && exec "$@"`, "sh", "node", "app.js"}},
		{"node", []string{"nohup", "nice", "timeout", "1h", "node", "app.js"}},
	} {
		t.Run(strings.Join(test.command[:2], " "), func(t *testing.T) {
			t.Parallel()
			address := trial.FreeAddress(t)
			p := trial.StartCmd(t, handfast(t, dir, address, nil, test.command...))
			chosen := `"worker link chosen"`
			p.Await("link", 1, func(line string) bool {
				return strings.Contains(line, chosen) && strings.Contains(line, `"link":"`+test.link+`"`)
			})
			p.AwaitReady(trial.Workers)
			var pids [trial.Workers]int
			for i := 1; i <= 12; i++ {
				client := trial.ClientAt(trial.Loopback(i))
				answer, err := trial.Get(client, address)
				client.CloseIdleConnections()
				slot := hash.DefaultConfig().Key(trial.Loopback(i)).Slot(trial.Workers)
				if err != nil || answer.Slot != slot {
					t.Fatalf("client %d: %+v, %v; want slot %d", i, answer, err, slot)
				}
				if pids[slot] == 0 {
					pids[slot] = answer.PID
				}
				if answer.PID != pids[slot] {
					t.Errorf("client %d was answered by process %d, others of its slot by %d", i, answer.PID, pids[slot])
				}
			}
			p.Stop()
		})
	}
}

// TestBehindProxy: where the program that listens cannot be served, the error is there at once, and
// names the command that can.
// Row C1.
func TestBehindProxy(t *testing.T) {
	_, dir := trial.Install(t, "app.js", "server.ts")
	for _, test := range []struct {
		instead string
		command []string
	}{
		{"node app.js", []string{"npm", "start"}},
		{"node app.js", []string{"npm", "run", "dev"}},
		{"node --import tsx server.ts", []string{"npx", "tsx", "server.ts"}},
	} {
		output, err := handfast(t, dir, trial.FreeAddress(t), []string{"--behind-proxy"}, test.command...).CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(output), "run node itself: -- "+test.instead+";") {
			t.Errorf("%q: %v\n%s", test.command, err, output)
		}
	}
}
