package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/forwarded"
	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/link/launch"
	"github.com/handfast/handfast/master/link/nodeipc"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/probe"
	"github.com/handfast/handfast/master/supervisor"
)

// values reads flags and checks their ranges. err has all that is wrong, once each.
type values struct {
	*cli.Context
	from origins
	err  error
}

func (v *values) fail(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if v.err == nil || !strings.Contains(v.err.Error(), err.Error()) {
		v.err = join(v.err, usagef("%w%s", err, v.from.cite(err.Error())))
	}
}

// join adds a usage error to others: one a line.
func join(err, more error) error {
	if err == nil {
		return more
	}
	return usageError{errors.Join(err, more)}
}

// number returns an integer between low and high.
func (v *values) number(name string, low, high int) int {
	n := v.Int(name)
	if n < low || n > high {
		v.fail("--%s %d: want %d to %d", name, n, low, high)
	}
	return n
}

// duration returns a time of at least low.
func (v *values) duration(name string, low time.Duration) time.Duration {
	d := v.Duration(name)
	if d < low {
		v.fail("--%s %v: want at least %v", name, d, low)
	}
	return d
}

// size returns a number of bytes, which may be given in KiB, between low and high.
func (v *values) size(name string, low, high int) int {
	text := v.String(name)
	digits, isKiB := strings.CutSuffix(text, "KiB")
	n, err := strconv.Atoi(digits)
	if isKiB && err == nil && n <= high {
		n <<= 10
	}
	if err != nil || n < low || n > high {
		hint := ""
		if digits := strings.TrimRight(strings.ToLower(text), " ib"); strings.HasSuffix(digits, "k") && isWhole(digits[:len(digits)-1]) {
			hint = digits[:len(digits)-1] + "KiB"
		}
		v.fail("--%s %q: want %d to %d bytes, or %dKiB to %dKiB%s", name, text, low, high, low>>10, high>>10, didYouMean(hint))
	}
	return n
}

// choice returns the index of a flag's value among the words allowed, 0 if it is none of them.
func (v *values) choice(name string, words ...string) int {
	i := slices.Index(words, v.String(name))
	if i < 0 {
		v.fail("--%s %q: want %s%s", name, v.String(name), or(words), didYouMean(nearest(v.String(name), words)))
	}
	return max(i, 0)
}

// or lists words of which one is to be chosen.
func or(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// drainSignal returns a signal by its name, with or without SIG; 0 for auto, launch.NoSignal for
// none.
func (v *values) drainSignal(name string) syscall.Signal {
	text := v.String(name)
	switch text {
	case "auto":
		return 0
	case "none":
		return launch.NoSignal
	}
	signal := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG"))
	if signal == 0 {
		v.fail("--%s %q: want auto, none or the name of a signal, such as TERM or QUIT", name, text)
	}
	return signal
}

// readyWords are the values of --ready-when that are no probes.
var readyWords = []string{"auto", "message", "listening", "started"}

// readyNotify is a value of --ready-when: sd_notify's READY=1.
const readyNotify = "notify"

// readyWhen returns what a Node worker does when it is ready, and a probe of any worker, or nil.
func (v *values) readyWhen() (nodeipc.ReadyWhen, func(context.Context, supervisor.Seat) error) {
	text := v.String("ready-when")
	if text == readyNotify {
		if !v.Bool("sd-notify") {
			v.fail("--ready-when notify: needs --sd-notify, else workers have nowhere to say so")
		}
		return nodeipc.ReadyAuto, nil
	}
	if i := slices.Index(readyWords, text); i >= 0 {
		return nodeipc.ReadyWhen(i), nil
	}
	p, err := probe.Parse(text)
	switch limit := v.Duration("ready-timeout"); {
	case errors.Is(err, probe.ErrUnknown):
		v.fail("--ready-when %q: want %s, a delay such as 3s, tcp:HOST:PORT or http://HOST:PORT/PATH", text, strings.Join(readyWords, ", ")+", "+readyNotify)
	case err != nil:
		v.fail("--ready-when %q: %w", text, err)
	case p.Delay >= limit:
		v.fail("--ready-when %s: with --ready-timeout %v no worker is ever ready", text, limit)
	}
	return nodeipc.ReadyAuto, func(ctx context.Context, seat supervisor.Seat) error {
		return p.Wait(ctx, seat.Slot, seat.Generation)
	}
}

// keys returns what clients are recognised by.
func (v *values) keys() forwarded.Keys {
	keys, err := forwarded.ParseKeys(v.String("key"))
	if err != nil {
		v.fail("--key %s: %s", v.String("key"), logging.WithoutPackages(err.Error()))
	}
	return keys
}

// sessionIdle is --session-idle by default.
const sessionIdle = time.Minute

// checkSessions says what has no effect without --session.
func (v *values) checkSessions(rules *forwarded.Rules) {
	switch {
	case len(rules.Sessions) > 0:
	case rules.Anywhere:
		v.fail("--new-sessions least: needs --session, else no request of a session comes back to its worker")
	case v.Duration("session-idle") != sessionIdle:
		v.fail("--session-idle %v: needs --session, else no request names a worker; for clients by address or key: --drain-affinity", v.Duration("session-idle"))
	}
}

// newSessionsWords are the values of --new-sessions.
var newSessionsWords = []string{"key", "least"}

// sessions returns where ids of sessions come back that name their workers.
func (v *values) sessions() forwarded.Sessions {
	list := strings.Join(v.StringSlice("session"), ",")
	all, err := forwarded.ParseSessions(list)
	if err != nil {
		v.fail("--session %s: %s", list, logging.WithoutPackages(err.Error()))
	}
	return all
}

// proxyModeWords are the values of --proxy-protocol-mode.
var proxyModeWords = []string{"consume", "leave"}

// proxyProtocol reads who sends PROXY headers, and who reads them.
func (v *values) proxyProtocol(config *clientip.Config) {
	config.ProxyProtocol = v.Bool("proxy-protocol")
	config.LeaveProxy = v.choice("proxy-protocol-mode", proxyModeWords...) == 1
	config.ProxyOptional = v.trusted("proxy-protocol-optional")
	switch {
	case config.ProxyProtocol:
	case config.LeaveProxy:
		v.fail("--proxy-protocol-mode leave: needs --proxy-protocol, else no such header is looked at")
	case len(config.ProxyOptional) > 0:
		v.fail("--proxy-protocol-optional %s: needs --proxy-protocol, else no such header is looked at", v.String("proxy-protocol-optional"))
	}
}

// clients reads how the client of a connection is found.
func (v *values) clients() clientip.Config {
	config := clientip.Config{
		Hash:          v.hashing(),
		HeaderTimeout: v.duration("header-timeout", time.Millisecond),
		HeaderLimit:   v.size("header-limit", clientip.MinHeaderLimit, clientip.MaxHeaderLimit),
	}
	if v.err == nil && config.HeaderTimeout > clientip.MaxHeaderTimeout {
		v.fail("--header-timeout %v: want at most %v", config.HeaderTimeout, clientip.MaxHeaderTimeout)
	}
	config.Hash.Slots = v.slotAddress()
	v.proxyProtocol(&config)
	config.Rules.Keys, config.Rules.Sessions = v.keys(), v.sessions()
	config.Rules.Anywhere = v.choice("new-sessions", newSessionsWords...) == 1
	v.checkSessions(&config.Rules)
	config.Rules.Hops = v.number("trusted-hops", 0, forwarded.MaxHops)
	failed := v.err
	config.Rules.Trusted = v.trusted("trusted-proxies")
	if v.Bool("behind-proxy") {
		config.Rules.Header = v.String("proxy-header")
		if !forwarded.IsToken(config.Rules.Header) {
			v.fail("--proxy-header %q: want the name of a header", config.Rules.Header)
		}
	}
	switch proxied := v.Bool("behind-proxy") || config.ProxyProtocol; {
	case !v.Bool("behind-proxy") && v.IsSet("proxy-header"):
		v.fail("--proxy-header %s: needs --behind-proxy, else no header is looked at", v.String("proxy-header"))
	case !v.Bool("behind-proxy") && slices.ContainsFunc(config.Rules.Keys, func(k forwarded.Key) bool { return k.Kind == forwarded.ByHeader }):
		v.fail("--key %s: needs --behind-proxy, since only a trusted proxy's headers are believed; for an id that workers make: --session %[1]s", v.String("key"))
	case !v.Bool("behind-proxy") && config.Rules.Hops > 0:
		v.fail("--trusted-hops %d: needs --behind-proxy, else no header is looked at", config.Rules.Hops)
	case !proxied && v.IsSet("trusted-proxies"):
		v.fail("--trusted-proxies %s: needs --behind-proxy or --proxy-protocol, else nobody is asked", v.String("trusted-proxies"))
	case proxied && len(config.Rules.Trusted) == 0 && v.err == failed:
		v.fail("--trusted-proxies %q: name at least one, else no proxy is believed", v.String("trusted-proxies"))
	}
	return config
}

// slotAddress returns the network that has slots' own addresses.
func (v *values) slotAddress() hash.SlotAddresses {
	text := v.String("slot-address")
	if text == "" {
		return hash.SlotAddresses{}
	}
	own, err := hash.ParseSlotAddresses(text)
	if err != nil {
		v.fail("--slot-address %s: %s", text, logging.WithoutPackages(err.Error()))
	} else if workers := v.Int("workers"); own.Room() < workers {
		v.fail("--slot-address %s: it has %d addresses, and %d workers need one each: give a larger network, or --workers %[2]d", text, own.Room(), workers)
	}
	return own
}

func (v *values) workers() int { return v.number("workers", 1, hash.MaxSlots) }

func (v *values) hashing() hash.Config {
	seed := v.Uint64("hash-seed")
	if seed > math.MaxUint32 {
		v.fail("--hash-seed %d: want 0 to %d", seed, uint32(math.MaxUint32))
	}
	return hash.Config{
		Seed:       uint32(seed),
		IPv4Prefix: v.number("ipv4-prefix", 0, 32),
		IPv6Prefix: v.number("ipv6-prefix", 0, 128),
	}
}
