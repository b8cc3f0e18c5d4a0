package master

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/balancer"
	"github.com/handfast/handfast/master/clientip"
	"github.com/handfast/handfast/master/kernelroute"
	"github.com/handfast/handfast/master/reexec"
	"github.com/handfast/handfast/master/reexec/reexectest"
	"github.com/handfast/handfast/master/reuseport"
)

// TestGolden: the state of a master, as if both routes were taken.
func TestGolden(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 5_000_000, time.UTC)
	kernel := new(kernelroute.Saved)
	if err := json.Unmarshal([]byte(`{
		"Groups": [{"Network": "tcp4", "Addr": {"IP": "127.0.0.1", "Port": 8080, "Zone": "eth0"}, "Own": 7, "Members": [8, 9], "Sockets": [1, 2, 3], "At": [1, 0], "IPv4Of": -1}],
		"Berths": [{"Slot": 1, "Leases": [{"Slot": 1, "PID": 101}], "Used": true, "Spoiled": true, "Left": "2026-11-26T12:00:00Z"}],
		"At": [1, 0], "Served": true}`), kernel); err != nil {
		t.Fatal(err)
	}
	reexectest.Golden(t, part, saved{
		Link: LinkNode, Started: at, Upgrades: 2,
		Stats:       balancer.Stats{Accepted: 1, HandedOff: 2, TakenBack: 3, HandedBack: 7, Refused: 4, Gone: 5, Parked: 6},
		Counts:      []balancer.Counts{{HandedOff: 1, HandedBack: 4, Refused: 2, MailboxFull: 3}},
		Parked:      []balancer.SavedParked{{Handoff: fdpass.Handoff{FD: 10, Client: netip.MustParseAddrPort("192.0.2.1:1234"), Flags: fdpass.FlagProxied, Details: "\x00\xff"}, Parked: at, Refused: true, Idle: true}},
		Addresses:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")},
		Names:       []string{"/run/.app.sock.1"},
		Listeners:   []balancer.SavedListener{{FD: 11, Path: "/run/app.sock", Stays: true}},
		KernelRoute: kernel,
	})
}

// TestGoldenCounts: what counts by the kernel's route.
func TestGoldenCounts(t *testing.T) {
	reexectest.Golden(t, countsPart, kernelroute.SavedCounts{Came: []uint64{7}, Uncounted: true,
		Programs: []*reuseport.SavedProgram{{Layout: 1, Slots: 128, Program: 12, Tables: 13, Counts: 14, Processors: 2, Came: []uint64{5, 6}}}})
}

// TestGoldenNames: what is left of workers that sessions name.
func TestGoldenNames(t *testing.T) {
	reexectest.Golden(t, namesPart, savedNames{Secret: [clientip.SecretSize]byte{1, 2, 255}, Starts: 3, Counts: [2]uint64{4, 5}, ByPID: map[int]clientip.Name{101: {Slot: 1, Generation: 2, Start: 3}}})
}

// TestLinkWords: a link is a word in a bundle, and nothing else is one.
func TestLinkWords(t *testing.T) {
	for link := LinkNative; link <= LinkInject; link++ {
		text, err := json.Marshal(link)
		var again LinkKind
		if err == nil {
			err = json.Unmarshal(text, &again)
		}
		if again != link || err != nil {
			t.Errorf("%v is written as %s, and read as %v, %v", link, text, again, err)
		}
	}
	for _, text := range []string{`1`, `"mailbox"`, `""`} {
		if err := json.Unmarshal([]byte(text), new(LinkKind)); err == nil {
			t.Errorf("%s is a link", text)
		}
	}
}

// FuzzAdopt: whatever a bundle says of a master, it is refused, or its descriptors are some that were kept.
func FuzzAdopt(f *testing.F) {
	f.Add([]byte(reexectest.Text(f, part)))
	f.Fuzz(func(t *testing.T, text []byte) {
		var state saved
		b := reexec.NewBundle("before")
		if b.Unseal(json.RawMessage(text), part, &state) != nil || b.Put(part, state) != nil {
			return
		}
		var c Config
		if err := c.Adopt(b); err == nil && len(c.Listeners)+len(c.Groups) > 0 {
			t.Errorf("%v, %v of a bundle that keeps nothing", c.Listeners, c.Groups)
		}
	})
}
