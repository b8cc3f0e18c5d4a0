package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/handfast/handfast/hash"
)

// TestPlanSlotAddresses: where slots have addresses of their own, what is listened on has them, by all links and routes;
// else the remedy is named.
func TestPlanSlotAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		network, listen string
		want            string // what the plan listens on, or words of the error
	}{
		{"127.77.0.0/24", ":80", ":80"},
		{"127.77.0.0/24", "0.0.0.0:80", "0.0.0.0:80"},
		{"127.77.0.0/24", "127.0.0.1:80", "lo/127.0.0.1:80"},
		{"127.77.0.0/24", "localhost:80", "lo/localhost:80"},
		{"127.77.0.0/24", "127.0.0.1:80 10.0.0.1:81", "lo/127.0.0.1:80 10.0.0.1:81"},
		{"127.77.0.0/24", "10.0.0.1:80", "use --listen :PORT or 0.0.0.0:PORT, or 127.0.0.1:PORT"},
		{"127.77.0.0/24", "127.0.0.1:80 10.0.0.1:80", "use --listen :PORT"},
		{"127.77.0.0/24", "127.0.0.2:80", "use --listen :PORT"},
		{"127.77.0.0/24", "[::]:80", "use --listen :PORT"},
		{"fd77::/112", "[::]:80", "[::]:80"},
		{"fd77::/112", "[::1]:80", "lo/[::1]:80"},
		{"fd77::/112", "127.0.0.1:80", "use --listen :PORT or [::]:PORT, or [::1]:PORT"},
	} {
		own, err := hash.ParseSlotAddresses(tt.network)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for r := range planIntents() {
			for name, f := range planCommands {
				if n++; n%planStep() != 0 {
					continue
				}
				r.listen, r.slotAddress = nil, hash.SlotAddresses{}
				plain, err := r.decide(f)
				if err != nil {
					continue // whatever the addresses are
				}
				r.listen, r.slotAddress = strings.Fields(tt.listen), own
				d, err := r.decide(f)
				switch {
				case err != nil && !strings.Contains(err.Error(), tt.want), err == nil && !slices.Equal(d.listen, strings.Fields(tt.want)):
					t.Fatalf("%s, --slot-address %s --listen %s: %q, %v, want %s", name, tt.network, tt.listen, d.listen, err, tt.want)
				case d.route != plain.route || d.link != plain.link:
					t.Fatalf("%s, --slot-address %s: route %v, link %v, without %v, %v", name, tt.network, d.route, d.link, plain.route, plain.link)
				}
			}
		}
	}
	lacking := errors.New("no such address")
	r := intent{workers: 2, listen: []string{":80"}}
	r.slotAddress, _ = hash.ParseSlotAddresses("10.77.0.0/24")
	if _, err := r.decide(facts{noSlotAddress: lacking}); err != lacking {
		t.Errorf("on a machine without the addresses: %v", err)
	}
}

// TestCheckSlotAddresses: those of the loopback network are there, others are not (RFC 5737), and the remedy is named.
func TestCheckSlotAddresses(t *testing.T) {
	t.Parallel()
	if err := checkSlotAddresses(slotNetwork, 3); err != nil {
		t.Error(err)
	}
	own, _ := hash.ParseSlotAddresses("192.0.2.0/24")
	if err := checkSlotAddresses(own, 3); err == nil || !strings.Contains(err.Error(), "ip route add local 192.0.2.0/24 dev lo") {
		t.Error(err)
	}
}
