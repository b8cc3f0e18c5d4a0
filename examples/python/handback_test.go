package python_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/handfast/handfast/cmd/trial"
	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
)

// proxy is a connection over which a proxy sends the requests of many clients.
type proxy struct {
	net.Conn
	t     *testing.T
	lines *bufio.Reader
}

func dialProxy(t *testing.T, address string) *proxy {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &proxy{conn, t, bufio.NewReader(conn)}
}

func requestOf(client netip.Addr) string {
	return fmt.Sprintf("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\n\r\n", client)
}

// answered wants an answer of the client's slot, after which the connection stays open.
func (p *proxy) answered(client netip.Addr, generation int) {
	p.t.Helper()
	response, err := http.ReadResponse(p.lines, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	var a trial.Answer
	fmt.Sscanf(string(body), "slot=%d pid=%d generation=%d", &a.Slot, &a.PID, &a.Generation)
	if want := hash.DefaultConfig().Key(client).Slot(trial.Workers); a.Slot != want || a.Generation != generation || response.Close {
		p.t.Errorf("client %v: %q, close %v, error %v; want slot %d, generation %d", client, body, response.Close, err, want, generation)
	}
}

func remote(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

// TestHandBack: each request on a proxy's connection is served in its own client's slot: those that come one by one, several
// at a time, in pieces, and after a reload, which closes nothing.
func TestHandBack(t *testing.T) {
	t.Parallel()
	t.Run("TCP", func(t *testing.T) { t.Parallel(); tryHandBack(t, "127.0.0.1:0") })
	t.Run("Unix", func(t *testing.T) { t.Parallel(); tryHandBack(t, "unix:"+t.TempDir()+"/app.sock") })
}

func tryHandBack(t *testing.T, listen string) {
	p, address := trial.BalanceAt(t, listen, []string{"--behind-proxy"}, python(t), "worker.py")
	proxy, idle := dialProxy(t, address), dialProxy(t, address)
	io.WriteString(idle, requestOf(remote(1)))
	idle.answered(remote(1), 1)
	for i := range 50 {
		text := requestOf(remote(i))
		at := i * len(text) / 50
		io.WriteString(proxy, text[:at])
		io.WriteString(proxy, text[at:])
		proxy.answered(remote(i), 1)
	}
	var several strings.Builder
	for i := range 10 {
		several.WriteString(requestOf(remote(i)))
	}
	io.WriteString(proxy, several.String())
	for i := range 10 {
		proxy.answered(remote(i), 1)
	}
	p.Process.Signal(syscall.SIGUSR2)
	p.Await("the end of the old workers", trial.Workers, func(line string) bool { return strings.Contains(line, `"worker exited"`) })
	for i := range 50 {
		io.WriteString(proxy, requestOf(remote(i)))
		proxy.answered(remote(i), 2)
	}
	io.WriteString(idle, requestOf(remote(2)))
	idle.answered(remote(2), 2)
	proxy.Close()
	idle.Close()
	p.Stop()
}

// TestHandBackDetails: what a PROXY header says of a connection stays with it.
func TestHandBackDetails(t *testing.T) {
	t.Parallel()
	p, address := trial.BalanceWith(t, []string{"--behind-proxy", "--proxy-protocol"}, python(t), "worker.py")
	proxy := dialProxy(t, address)
	header := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x13" + "\x0a\x01\x02\x03" + "\x0a\x01\x02\x04" + "\x01\x02\x00\x50" + "\x02\x00\x04test"
	io.WriteString(proxy, header)
	for i := range 20 {
		io.WriteString(proxy, requestOf(remote(i)))
		response, err := http.ReadResponse(proxy.lines, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		if want := fmt.Sprintf("slot=%d ", hash.DefaultConfig().Key(remote(i)).Slot(trial.Workers)); !strings.HasPrefix(string(body), want) ||
			!strings.HasSuffix(string(body), " client=10.1.2.3\n") {
			t.Errorf("client %v: %q, want %s", remote(i), body, want)
		}
	}
	proxy.Close()
	p.Stop()
}

// TestSlotAddress: what came to a slot's own address stays there, whoever the client is.
func TestSlotAddress(t *testing.T) {
	t.Parallel()
	p, address := trial.BalanceAt(t, "0.0.0.0:0", []string{"--behind-proxy", "--slot-address", "127.77.0.0/24"}, python(t), "worker.py")
	_, port, _ := net.SplitHostPort(address)
	proxy := dialProxy(t, "127.77.0.1:"+port)
	for i := range 20 {
		io.WriteString(proxy, requestOf(remote(i)))
		response, err := http.ReadResponse(proxy.lines, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); !strings.HasPrefix(string(body), "slot=1 ") {
			t.Errorf("client %v: %q, error %v; want slot 1", remote(i), body, err)
		}
	}
	proxy.Close()
	p.Stop()
	if p.Count(func(line string) bool { return strings.Contains(line, `"handed_off":1,`) }) != 1 {
		t.Error("it was handed back")
	}
}

// TestBody: a request's body is not the next request.
func TestBody(t *testing.T) {
	t.Parallel()
	_, address := trial.BalanceWith(t, []string{"--behind-proxy"}, python(t), "worker.py")
	proxy := dialProxy(t, address)
	body := requestOf(remote(2))
	fmt.Fprintf(proxy, "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %v\r\nContent-Length: %d\r\n\r\n", remote(1), len(body))
	response, err := http.ReadResponse(proxy.lines, nil)
	if err != nil || !response.Close {
		t.Errorf("%+v, error %v; want one that closes the connection", response, err)
	}
}

// TestSession: requests of several sessions on one connection reach the workers that they name, also when those are replaced: they are
// left alone as long as they are named. New sessions begin with new workers.
func TestSession(t *testing.T) {
	t.Parallel()
	p, address := trial.BalanceWith(t, []string{"--session", "cookie:route", "--new-sessions", "least", "--session-idle", "5s"}, python(t), "worker.py")
	var conn *proxy
	ask := func(cookie string) (a trial.Answer, session string) {
		t.Helper()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: test\r\n%s\r\n", cookie)
		response, err := http.ReadResponse(conn.lines, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if _, scanned := fmt.Sscanf(string(body), "slot=%d pid=%d generation=%d", &a.Slot, &a.PID, &a.Generation); err != nil || scanned != nil || response.Close {
			t.Errorf("%q, close %v, error %v", body, response.Close, err)
		}
		session, _, _ = strings.Cut(response.Header.Get("Set-Cookie"), ";")
		return a, session
	}
	// The first requests on connections begin sessions at all workers.
	begun, own := map[string]trial.Answer{}, map[string]*proxy{}
	for trial.Workers > len(begun) {
		conn = dialProxy(t, address)
		defer conn.Close()
		a, session := ask("")
		begun[session], own[session] = a, conn
	}
	comesBack := func(session string) {
		t.Helper()
		if got, again := ask("Cookie: a=b; " + session + "\r\n"); got != begun[session] || again != "" {
			t.Errorf("%s: %+v, want %+v; it is given %q", session, got, begun[session], again)
		}
	}
	p.Process.Signal(syscall.SIGUSR2)
	reloaded := func(line string) bool { return strings.Contains(line, `"reload finished"`) }
	// For longer than sessions may be idle. The master sees no request on their own connections but the first, and all of those they share.
	for end := time.Now(); p.Count(reloaded) == 0 || time.Since(end) < 6*time.Second; time.Sleep(50 * time.Millisecond) {
		if p.Count(reloaded) == 0 {
			end = time.Now()
		}
		for session := range begun {
			conn = own[session]
			comesBack(session)
		}
	}
	for range 3 {
		for session := range begun {
			comesBack(session)
		}
	}
	if a, session := ask(""); a.Generation != 2 || session == "" {
		t.Errorf("a new session: %+v, %q", a, session)
	}
	p.Await("the end of the old workers", trial.Workers, func(line string) bool { return strings.Contains(line, `"worker exited"`) })
	for session, before := range begun {
		if a, again := ask("Cookie: " + session + "\r\n"); a.Slot != before.Slot || a.Generation != 2 || again == "" {
			t.Errorf("%s, whose worker %+v is no more: %+v, it is given %q", session, before, a, again)
		}
	}
}

// question is a request to read, with what the worker is told by environment.
type question struct {
	Env    map[string]string
	Source string
	Head   string // a byte for each character
	Slots  int
}

// place answers questions by the module clients.
const place = `
import json, sys, clients
for line in sys.stdin:
    q = json.loads(line)
    c = clients.Clients(q["Env"])
    r = c.read(clients.address(q["Source"]), q["Head"].encode("latin-1"), q["Slots"])
    print(r if r in (None, -1) else f"{r.slot} {b' '.join(r.tokens).decode()}".strip())
`

// TestKnown: the worker does not say that it hands connections back if it does not place requests as the master does.
func TestKnown(t *testing.T) {
	t.Parallel()
	const known = "import json, sys, clients\nprint(clients.Clients(json.loads(sys.argv[1])).known)"
	for env, want := range map[string]string{
		`"HANDFAST_PROXY_HEADER": "X-Forwarded-For", "HANDFAST_KEY": "address"`:                                                  "True",
		`"HANDFAST_PROXY_HEADER": "X-Forwarded-For", "HANDFAST_KEY": "header:X-User,query:id", "HANDFAST_SESSION": "path:/{id}"`: "True",
		`"HANDFAST_PROXY_HEADER": "Forwarded", "HANDFAST_KEY": "address"`:                                                        "False",
		`"HANDFAST_PROXY_HEADER": "X-Forwarded-For", "HANDFAST_KEY": "header:X-User,planet:id"`:                                  "False",
		`"HANDFAST_PROXY_HEADER": "X-Forwarded-For", "HANDFAST_KEY": "address", "HANDFAST_SESSION": "planet"`:                    "False",
	} {
		const rest = `, "HANDFAST_BEHIND_PROXY": "true", "HANDFAST_TRUSTED_PROXIES": "127.0.0.0/8", "HANDFAST_TRUSTED_HOPS": "0", "HANDFAST_IPV4_PREFIX": "32", "HANDFAST_IPV6_PREFIX": "64", "HANDFAST_SEED": "0"`
		got, err := exec.Command(python(t), "-c", known, "{"+env+rest+"}").CombinedOutput()
		if strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %s, error %v, want %s", env, got, err, want)
		}
	}
}

// TestPlaces: the module says the same as packages forwarded and hash.
func TestPlaces(t *testing.T) {
	t.Parallel()
	var input, want []string
	for range 3000 {
		q, answer := ask(t)
		line, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		input, want = append(input, string(line)), append(want, answer)
	}
	cmd := exec.Command(python(t), "-c", place)
	cmd.Stdin = strings.NewReader(strings.Join(input, "\n"))
	var failure strings.Builder
	cmd.Stderr = &failure
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err, failure.String())
	}
	got := strings.Split(string(output), "\n")
	for i := range input {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("%s: %v, want %s", input[i], got[min(i, len(got)):min(i+1, len(got))], want[i])
		}
	}
}

func oneOf[T any](of ...T) T { return of[rand.IntN(len(of))] }

// ask makes a question, and the answer that Go's packages have to it.
func ask(t *testing.T) (q question, answer string) {
	t.Helper()
	trusted, err := forwarded.ParseTrust(oneOf(forwarded.DefaultTrust, "127.0.0.1,2001:db8::/33", "0.0.0.0/1,::ffff:192.0.2.0/120,127.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	rules := forwarded.Rules{Header: oneOf("X-Forwarded-For", "X-Real-IP"), Trusted: trusted, Hops: max(rand.IntN(8)-4, 0)}
	rules.Keys, err = forwarded.ParseKeys(oneOf("address", "header:X-User", "header:X-User,cookie:id", "cookie:id,query:i d,address", "path:/*/{id}", "path:/echo/*/{id},query:id"))
	if err != nil {
		t.Fatal(err)
	}
	if rules.Sessions, err = forwarded.ParseSessions(oneOf("", "", "engine.io", "header:X-User", "cookie:id,path:/{id}", "query:id,cookie:id")); err != nil {
		t.Fatal(err)
	}
	rules.Anywhere = len(rules.Sessions) > 0 && rand.IntN(2) == 0
	if rand.IntN(4) == 0 && !strings.Contains(rules.Keys.String(), "header") {
		rules.Header, rules.Trusted, rules.Hops = "", nil, 0
	}
	config := hash.Config{Seed: oneOf(0, rand.Uint32()), IPv4Prefix: oneOf(32, rand.IntN(33)), IPv6Prefix: oneOf(64, rand.IntN(129))}
	q = question{Env: map[string]string{}, Source: oneOf("127.0.0.1", "127.0.0.1", "198.51.100.7"), Slots: 1 + rand.IntN(oneOf(4, hash.MaxSlots)), Head: randomHead()}
	for _, line := range append(rules.Environ(), fmt.Sprint("HANDFAST_SEED=", config.Seed),
		fmt.Sprint("HANDFAST_IPV4_PREFIX=", config.IPv4Prefix), fmt.Sprint("HANDFAST_IPV6_PREFIX=", config.IPv6Prefix)) {
		name, value, _ := strings.Cut(line, "=")
		q.Env[name] = value
	}
	head := forwarded.Head{Request: rules.Request()}
	switch data := latin1(q.Head); head.Scan(data) {
	case forwarded.Complete:
		client := head.Client(netip.MustParseAddr(q.Source), config)
		answer = fmt.Sprint(client.Key.Slot(q.Slots))
		if rules.Anywhere && !client.Told {
			answer = "None"
		}
		for token := range head.Tokens {
			answer += " " + token.String()
		}
		return q, answer
	case forwarded.NotHTTP:
		if strings.Contains(strings.ReplaceAll(strings.TrimLeft(q.Head, "\r\n"), "\r", ""), "\n\n") {
			return q, "-1"
		}
	}
	return q, "None" // also for what could be told to be no HTTP before it is whole: the master tells
}

func latin1(text string) (b []byte) {
	for _, c := range text {
		b = append(b, byte(c))
	}
	return b
}

func randomHead() string {
	end := oneOf("\r\n", "\r\n", "\n")
	var b strings.Builder
	b.WriteString(oneOf("", "", "\r\n\n") + oneOf("GET", "GET", "G=T") + " " + oneOf(randomTarget(), randomTarget(), "X-Forwarded-For:192.0.2.77", "/a b") + oneOf(" HTTP/1.1", " HTTP/1.0", " HTTP/1.1 ") + end)
	odd := rand.IntN(4) == 0
	for range rand.IntN(5) {
		b.WriteString(oneOf("X-Forwarded-For:", "x-forwarded-for: ", "X-Real-IP: \t", "X-User:"+oneOf("", randomID()+end+"x-user:"), "Other: ", randomCookies(end)+end+"Other:", randomCookies(end)+end+"Other:"))
		for range rand.IntN(4) {
			b.WriteString(oneOf("", " ", "\t") + randomNode() + oneOf(",", ", ", " ,", ",,"))
		}
		b.WriteString(randomNode())
		if odd {
			b.WriteString(oneOf("\r\r\n", "\x00"+end, end+" folded"+end))
		} else {
			b.WriteString(end)
		}
	}
	whole := b.String() + end + oneOf("", "\n", "GET / HTTP/1.1\r\n\r\n")
	return oneOf(whole, whole, whole, b.String())
}

// randomID is of a session, and it may name a worker.
func randomID() string {
	token := strings.Repeat(oneOf("a", "7z"), 26)[:26]
	return oneOf("", "", "me", "é", "a+b", "%6de", "%", "%4", "a%2Eb", token, "x."+token, "x."+token+"a", "%2e"+token, "x."+strings.ToUpper(token), "."+token+".", token[1:]+"1", `"me"`, `"`, ` "x.`+token+`" `)
}

func randomTarget() string {
	id := strings.ReplaceAll(randomID(), " ", "")
	path := oneOf("/", "/echo/1/", "/%65cho/%2f/", "/echo//", "/a/", "//") + oneOf(id, id+"/xhr", id+"#a?id=b/", "")
	query := oneOf("", "?", "?id="+id, "?i+d="+id+"&id=2", "?a=b&&%69d="+id, "?id&sid="+id, "?sid="+id+"?", "?id=%zz&s%69d="+id+"#?sid=1")
	return oneOf("", "", "", "http://a", "http://a?b", "a:b", "://") + path + query
}

func randomCookies(end string) string {
	return oneOf("Cookie", "cookie", "Cookies") + ":" + oneOf("", " ", "\t") + oneOf("id", "id ", "a", "ID") + oneOf("=", "=", " = ", "") + randomID() + oneOf("", ";", "; id="+randomID(), ";a=b ;id = "+randomID()) + oneOf("", end+"Cookie: id="+randomID())
}

func randomNode() string {
	var six [16]byte
	for i := range six {
		six[i] = byte(rand.Uint32()) & byte(oneOf(0, 0xff))
	}
	v6 := netip.AddrFrom16(six)
	v4 := netip.AddrFrom4([4]byte{oneOf[byte](127, 10, 192, byte(rand.Uint32())), 0, byte(rand.IntN(3)), byte(rand.IntN(256))})
	return oneOf("", "unknown", "_hidden", "unix:", "127.0.0.1", "10.0.0.1:80", v4.String(), v4.String()+":8080", v6.String(), v6.StringExpanded(),
		"["+v6.String()+"]:80", `"[`+v6.String()+`]"`, `" `+v4.String()+`"`, `"`, "::ffff:"+v4.String(), "[::ffff:"+v4.String()+"]", v6.String()+"%eth0", "["+v6.String()+"]x",
		"01.2.3.4", "1.2.3", "1.2.3.256", "1::2::3", ":::", "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:8::", "fe80::1%", "2001:db8::1", "é", "12345::", "::1.2.3.4")
}
