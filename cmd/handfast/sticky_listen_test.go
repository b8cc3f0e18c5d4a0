package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// The tests in this file are named after the faults of sticky-listen 3.3.0, our ancestor,
// in its peeking and hashing. What it gets wrong about retries and refusals is in
// refuse_test.go (TestPatience, TestRefusal), and about dead workers in lost_test.go
// (TestKillWithFullMailbox).

const manySlots = 16

// behindProxy starts a balancer whose clients are told apart by X-Forwarded-For.
func behindProxy(t *testing.T) *instance {
	t.Helper()
	return start(t, manySlots, options{flags: []string{"--behind-proxy"}})
}

// wantSlot fails unless a request, sent in parts, comes to the slot of client.
func (b *instance) wantSlot(client netip.Addr, parts ...string) {
	b.t.Helper()
	if a := b.ask(proxyAt, parts...); a.slot != slotOf(client, manySlots) {
		b.t.Errorf("%q: slot %d, want %d of %v", parts, a.slot, slotOf(client, manySlots), client)
	}
}

// TestStickyListenHeads: what it gets wrong in the heads of requests.
func TestStickyListenHeads(t *testing.T) {
	t.Parallel()
	outer, b := t, behindProxy(t)
	for name, test := range map[string]func(*instance){
		"FirstChunkOnly":       firstChunkOnly,
		"ScansTheBody":         scansTheBody,
		"HashesTheChain":       hashesTheChain,
		"OneSpaceAfterColon":   oneSpaceAfterColon,
		"PrefixesOfNames":      prefixesOfNames,
		"IPv6HashesToOneValue": ipv6HashesToOneValue,
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			defer func() { b.t = outer }()
			test(b)
		})
	}
}

// firstChunkOnly: it looks for the header in the first chunk only.
func firstChunkOnly(b *instance) {
	head := forwardedFor(proxied(1))
	for cut := 1; cut < len(head); cut += 7 {
		b.wantSlot(proxied(1), head[:cut], head[cut:])
	}
}

// scansTheBody: it scans past the blank line.
func scansTheBody(b *instance) {
	body := "\r\nX-Forwarded-For: 203.0.113.99\r\n\r\n"
	post := func(line string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: test\r\n%sConnection: close\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)
	}
	b.wantSlot(proxyAt, post(""))
	b.wantSlot(proxied(1), post("X-Forwarded-For: "+proxied(1).String()+"\r\n"))
}

// hashesTheChain: it hashes the raw value, the whole chain of proxies and
// the carriage return with it.
func hashesTheChain(b *instance) {
	client := netip.MustParseAddr("203.0.113.8")
	for _, value := range []string{
		"203.0.113.8",
		"203.0.113.8, 10.0.0.1",
		"203.0.113.8,10.0.0.1,192.168.0.7",
		"203.0.113.8:4711, 10.0.0.2",
		"198.51.100.1, 203.0.113.8",
		"unknown, 203.0.113.8, [fd00::1]:80",
		"::ffff:203.0.113.8",
		"203.0.113.8 \t",
	} {
		b.wantSlot(client, forwardedHead("X-Forwarded-For: "+value))
		b.wantSlot(client, strings.ReplaceAll(forwardedHead("X-Forwarded-For: "+value), "\r\n", "\n"))
	}
	b.wantSlot(client, forwardedHead("X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.8", "X-Forwarded-For: 10.0.0.1"))
}

// oneSpaceAfterColon: it needs exactly one space after the colon.
func oneSpaceAfterColon(b *instance) {
	for _, between := range []string{"", " ", "  ", "\t", " \t "} {
		b.wantSlot(proxied(1), forwardedHead("x-forwarded-for:"+between+proxied(1).String()))
	}
}

// prefixesOfNames: it takes X-Forwarded-Format for X-Forwarded-For.
func prefixesOfNames(b *instance) {
	for _, name := range []string{"X-Forwarded-Format", "X-Forwarded-For-Real", "X-Forwarded-Fo", "XX-Forwarded-For", "X-Forwarded"} {
		b.wantSlot(proxyAt, forwardedHead(name+": 203.0.113.8"))
		b.wantSlot(proxied(1), forwardedHead(name+": 203.0.113.8", "X-Forwarded-For: "+proxied(1).String()))
	}
}

// ipv6HashesToOneValue: 2,000 random full-length IPv6 addresses hashed to
// one value. What package hash does with them is in its own tests; here they come through.
func ipv6HashesToOneValue(b *instance) {
	random := rand.New(rand.NewPCG(3, 3))
	count := make([]int, manySlots)
	const clients = 500
	for range clients {
		var ip [16]byte
		for i := range ip {
			ip[i] = byte(random.Uint32())
		}
		ip[0] = 0x20 // global unicast
		client := netip.AddrFrom16(ip)
		a := b.ask(proxyAt, forwardedFor(client))
		if a.slot != slotOf(client, manySlots) {
			b.t.Fatalf("%v: slot %d, want %d", client, a.slot, slotOf(client, manySlots))
		}
		count[a.slot]++
	}
	for slot, n := range count {
		if n < clients/manySlots/3 || n > clients/manySlots*3 {
			b.t.Errorf("slot %d has %d of %d clients", slot, n, clients)
		}
	}
}

// TestStickyListenRandomSeed: it draws a seed at each start, and everybody moves.
func TestStickyListenRandomSeed(t *testing.T) {
	t.Parallel()
	const slots = 3
	for range 2 {
		b := start(t, slots, options{flags: []string{"--behind-proxy"}})
		for i := range 20 {
			if a := b.ask(proxyAt, forwardedFor(proxied(i))); a.slot != slotOf(proxied(i), slots) {
				t.Errorf("client %v: slot %d, want %d", proxied(i), a.slot, slotOf(proxied(i), slots))
			}
		}
	}
}

// TestStickyListenWaitsForEver: it has no timeout for the first chunk.
func TestStickyListenWaitsForEver(t *testing.T) {
	t.Parallel()
	b := start(t, 1, options{flags: []string{"--behind-proxy", "--header-timeout", "100ms"}})
	if text, err := io.ReadAll(b.send(proxyAt)); len(text) > 0 || isTimeout(err) {
		t.Errorf("%q, %v, want a closed connection", text, err)
	}
}

// TestStickyListenDiesOfAReset: a client's reset while it is peeked, or while its slot is
// down, kills its master.
func TestStickyListenDiesOfAReset(t *testing.T) {
	t.Parallel()
	gate := t.TempDir() + "/gate"
	b := start(t, 1, options{worker: []string{"gate", gate}, notReady: true, flags: []string{"--behind-proxy"}})
	b.await("worker started")
	files := b.files()
	head := forwardedFor(proxied(1))
	for i := range 20 {
		reset(b.park(source(i), head[:i+1])) // while it is peeked
		reset(b.park(source(i), head))       // while its slot is down
		reset(b.send(source(i), head))       // at any moment
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a := b.ask(proxyAt, head); a.status != http.StatusOK {
		t.Errorf("%+v", a)
	}
	if !eventually(func() bool { return b.files() <= files+3 }) { // the inbox of its link, and both ends of its passage
		t.Errorf("%d files are open, at the start %d", b.files(), files)
	}
}

// TestUsageBehindProxy: combinations that would do nothing, or nothing good, are refused
// with what is missing.
func TestUsageBehindProxy(t *testing.T) {
	t.Parallel()
	for args, says := range map[string]string{
		"--proxy-header X-Real-IP":                           "--proxy-header X-Real-IP: needs --behind-proxy",
		"--behind-proxy --proxy-header X:Y":                  `--proxy-header "X:Y"`,
		"--key header:X-Session":                             "--key header:X-Session: needs --behind-proxy",
		"--behind-proxy --key cookie":                        `--key cookie: key "cookie": want address or header:NAME or cookie:NAME`,
		"--trusted-proxies 10.0.0.0/8":                       "--trusted-proxies 10.0.0.0/8: needs --behind-proxy or --proxy-protocol",
		"--behind-proxy --trusted-proxies 10.0.0.0/33":       `"10.0.0.0/33" is no address and no CIDR range`,
		"--proxy-protocol --trusted-hops 2":                  "--trusted-hops 2: needs --behind-proxy",
		"--behind-proxy --trusted-hops 9":                    "--trusted-hops 9: want 0 to 8",
		"--proxy-protocol --trusted-proxies ,":               "name at least one",
		"--proxy-protocol-optional private":                  "--proxy-protocol-optional private: needs --proxy-protocol",
		"--proxy-protocol-mode leave":                        "--proxy-protocol-mode leave: needs --proxy-protocol",
		"--proxy-protocol --proxy-protocol-mode keep":        `--proxy-protocol-mode "keep": want consume or leave`,
		"--proxy-protocol --proxy-protocol-optional 10/8":    `--proxy-protocol-optional: `,
		"--behind-proxy --header-limit 100":                  `--header-limit "100": want 1024 to 65536 bytes, or 1KiB to 64KiB`,
		"--behind-proxy --header-limit 65KiB":                `--header-limit "65KiB"`,
		"--behind-proxy --header-limit 9223372036854775807K": "--header-limit",
		"--behind-proxy --header-timeout 0":                  "--header-timeout 0s: want at least 1ms",
	} {
		var out fdtest.Log
		command := append([]string{"handfast", "run"}, strings.Fields(args+" -- true")...)
		if status := run(context.Background(), command, &out, &out); status != exitUsage || !strings.Contains(out.String(), says) {
			t.Errorf("%s: exit status %d, does not say %s: %s", args, status, says, &out)
		}
	}
}
