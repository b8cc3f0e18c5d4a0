package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// browser is a page in a headless Chromium, which is spoken to by its DevTools protocol.
type browser struct {
	t    *testing.T
	conn *websocket.Conn
	last int // number of the last call
}

// browse opens a page.
func browse(t *testing.T, url string) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	home := t.TempDir()
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		// Nothing but loopback, whatever a browser may think it needs.
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--proxy-server=direct://",
		"--remote-debugging-port=0", "--user-data-dir="+home, "about:blank")
	cmd.Env = append(os.Environ(), "HOME="+home)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	})
	endpoint := make(chan string, 1)
	go func() {
		listening := regexp.MustCompile(`DevTools listening on ws://([^/]+)/`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				endpoint <- m[1]
			}
		}
	}()
	b := &browser{t: t}
	select {
	case host := <-endpoint:
		b.connect(host)
	case <-time.After(2 * patience):
		t.Fatal("chromium does not start")
	}
	b.call("Page.enable", nil)
	b.call("Page.navigate", map[string]any{"url": url})
	return b
}

// connect finds the page among the browser's targets.
func (b *browser) connect(host string) {
	b.t.Helper()
	var targets []struct{ Type, WebSocketDebuggerURL string }
	if !eventually(func() bool {
		client := http.Client{Timeout: patience}
		resp, err := client.Get("http://" + host + "/json")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return json.NewDecoder(resp.Body).Decode(&targets) == nil && len(targets) > 0
	}) {
		b.t.Fatal("chromium has no page")
	}
	for _, target := range targets {
		if target.Type == "page" {
			ctx, cancel := context.WithTimeout(b.t.Context(), patience)
			defer cancel()
			conn, _, err := websocket.Dial(ctx, target.WebSocketDebuggerURL, nil)
			if err != nil {
				b.t.Fatal(err)
			}
			conn.SetReadLimit(16 << 20)
			b.t.Cleanup(func() { conn.CloseNow() })
			b.conn = conn
			return
		}
	}
	b.t.Fatalf("no page among %v", targets)
}

// call calls a method of the DevTools protocol.
func (b *browser) call(method string, params any) (result json.RawMessage) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	b.last++
	message, err := json.Marshal(map[string]any{"id": b.last, "method": method, "params": params})
	if err == nil {
		err = b.conn.Write(ctx, websocket.MessageText, message)
	}
	for err == nil {
		var text []byte
		if _, text, err = b.conn.Read(ctx); err != nil {
			break
		}
		var reply struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err = json.Unmarshal(text, &reply); err == nil && reply.ID == b.last {
			if reply.Error != nil {
				b.t.Fatalf("%s: %s", method, reply.Error.Message)
			}
			return reply.Result
		}
	}
	b.t.Fatalf("%s: %v", method, err)
	return nil
}

// evaluate returns the value of an expression, a text.
func (b *browser) evaluate(expression string) (value string) {
	b.t.Helper()
	var result struct{ Result struct{ Value any } }
	if err := json.Unmarshal(b.call("Runtime.evaluate", map[string]any{"expression": expression}), &result); err != nil {
		b.t.Fatal(err)
	}
	value, _ = result.Result.Value.(string)
	return value
}

// shows waits until the page, as it is rendered, has these words.
func (b *browser) shows(words ...string) (text string) {
	b.t.Helper()
	if !eventually(func() bool {
		text = b.evaluate("document.body.innerText")
		for _, word := range words {
			if !regexp.MustCompile(`(?m)(^|\s)` + regexp.QuoteMeta(word) + `(\s|$|,)`).MatchString(text) {
				return false
			}
		}
		return true
	}) {
		b.t.Fatalf("the page does not show %q:\n%s", words, text)
	}
	return text
}

// TestPage: a browser shows who is in the slots, and follows a reload, a drain and the end by
// itself. The page loads nothing but itself and the status, and needs no more than its policy
// allows.
func TestPage(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	open := func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open()
	m := start(t, 2, options{worker: []string{"gate", gate}, flags: []string{"--name", "<b>shop", "--admin", "127.0.0.1:0", "--max-connections-per-slot", "4321", "--watchdog", "2s"}})
	url := "http://" + m.awaitCount("admin socket", 2)[1].Address
	page := browse(t, url+"/")
	pids := func() (both []string) { return []string{fmt.Sprint(m.worker(0)), fmt.Sprint(m.worker(1))} }
	old := pids()
	text := page.shows(append(old, "serving", "/ 4,321", "<b>shop", "ready", fmt.Sprint(m.cmd.Process.Pid))...)
	if strings.Contains(text, "Replaced") || strings.Contains(text, "Reload") {
		t.Errorf("nobody drains, and nothing is reloaded:\n%s", text)
	}
	held := m.socketFor(sourceIn(1, 2, 0)) // so that one drains

	os.Remove(gate)
	reload := m.begin("reload")
	page.shows("Reload: generation 2", "0 of 2 slots since")
	open()
	reload.ends(exitOK)
	m.awaitCount("worker ready", 4)
	text = page.shows(append(pids(), old[1], "draining", "Replaced", "at most")...)
	if strings.Contains(text, old[0]) || strings.Contains(text, "Reload") {
		t.Errorf("the reload is over:\n%s", text)
	}

	// Rates come from two looks.
	_, stop := m.load(4, "/")
	if !eventually(func() bool {
		rate := page.evaluate(`document.querySelector('#totals dd').textContent`)
		return rate != "" && rate != "–" && rate != "0.0"
	}) {
		t.Errorf("no rate:\n%s", page.shows())
	}
	stop()

	for _, dark := range []string{"light", "dark"} {
		page.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": dark}}})
		ground := page.evaluate("getComputedStyle(document.body).backgroundColor")
		if want := map[string]string{"light": "rgb(246, 247, 249)", "dark": "rgb(18, 21, 26)"}[dark]; ground != want {
			t.Errorf("%s: the ground is %s, want %s", dark, ground, want)
		}
	}
	page.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true})
	if !eventually(func() bool {
		return page.evaluate("String(innerWidth == 360 && document.documentElement.scrollWidth <= innerWidth)") == "true"
	}) {
		t.Errorf("on a phone the page is wider than the screen: %s", page.evaluate("innerWidth + ' ' + document.documentElement.scrollWidth"))
	}

	loaded := page.evaluate(`[...new Set(performance.getEntriesByType('resource').map(e => e.name))].join(' ')`)
	if loaded != url+"/v1/status" {
		t.Errorf("the page loads %s", loaded)
	}
	// A script that is not in the page itself may not run.
	page.evaluate(`{ const s = document.createElement('script'); s.textContent = 'document.title = "foreign"'; document.body.append(s) }`)
	if title := page.evaluate("document.title"); title == "foreign" {
		t.Error("a foreign script runs")
	}
	hung := m.worker(0)
	freeze(t, hung)
	page.shows("hung")
	unix.Kill(hung, unix.SIGCONT)
	m.await("worker answers the watchdog again")
	held.CloseNow() // or the stop waits for it
	m.tell("stop")
	page.shows("no answer", "the master has gone, or cannot be reached. What follows is as it was then.")
	page.isOld(true)
}

// colours are those of a slot's row, as it is rendered.
func (b *browser) colours() string {
	return b.evaluate(`[...document.querySelectorAll('#slots tr:first-child td')].map(e => getComputedStyle(e).color).filter((c, i, all) => all.indexOf(c) === i).join(' ')`)
}

// isOld wants the rows to be grey, or not to be.
func (b *browser) isOld(old bool) {
	b.t.Helper()
	faint := b.evaluate(`getComputedStyle(document.getElementById('facts')).color`)
	if !eventually(func() bool { return old == (b.colours() == faint) }) {
		b.t.Errorf("old: %v, and the rows are %q, where grey is %q", old, b.colours(), faint)
	}
}

// TestPageOld: while the master does not answer, the rows are grey and a line says since when; when it answers again, they are not.
func TestPageOld(t *testing.T) {
	t.Parallel()
	m := start(t, 1, options{flags: []string{"--admin", "127.0.0.1:0"}})
	page := browse(t, "http://"+m.awaitCount("admin socket", 2)[1].Address+"/")
	page.shows("ready", "serving")
	page.isOld(false)
	freeze(t, m.cmd.Process.Pid)
	page.shows("no answer", "No answer since", "the master does not answer. What follows is as it was then.")
	page.isOld(true)
	unix.Kill(m.cmd.Process.Pid, unix.SIGCONT)
	page.shows("ready", "serving")
	page.isOld(false)
	if text := page.shows(); strings.Contains(text, "No answer") {
		t.Errorf("it answers:\n%s", text)
	}
}

// TestPageShowsLastWords: of a worker that died at once it shows what that wrote, below why it ended.
func TestPageShowsLastWords(t *testing.T) {
	t.Parallel()
	broken := t.TempDir() + "/broken"
	m := start(t, 1, options{worker: []string{"talks", broken}, flags: []string{"--admin", "127.0.0.1:0"}})
	page := browse(t, "http://"+m.awaitCount("admin socket", 2)[1].Address+"/")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, m.worker(0))
	page.shows("exited with status 3 before it was ready", "broken: no such thing")
}
