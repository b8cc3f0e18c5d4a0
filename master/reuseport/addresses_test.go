package reuseport

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// TestSlotAddresses: what comes to a slot's own address gets the slot's member from wherever it is, by each form of a
// listener that has the address. What wants another slot comes to the listener for absent ones.
func TestSlotAddresses(t *testing.T) {
	for _, tt := range []struct{ listen, network, from string }{
		{":0", "127.77.0.0/24", "127.0.0.1"},
		{"0.0.0.0:0", "127.77.0.16/28", "127.0.0.1"},
		{":0", "::1/128", "::1"},
		{"[::]:0", "::1/128", "::1"},
	} {
		config := hash.DefaultConfig()
		config.Slots, _ = hash.ParseSlotAddresses(tt.network)
		g := mustListen(t, tt.listen, config, 3)
		from := netip.MustParseAddr(tt.from)
		absent := make(chan struct{}, 1000)
		ln, err := net.FileListener(g.Absent())
		fdtest.Check(t, err)
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				absent <- struct{}{}
				conn.Close()
			}
		}()
		acceptAll(t, g, 0, 3, nil)
		for slot := range min(config.Slots.Room(), 5) {
			to := netip.AddrPortFrom(config.Slots.Of(slot), uint16(g.Addr().Port)).String()
			for i := range 20 {
				client := from
				if from.Is4() {
					client = loopback(i)
				}
				got, err := slotOf(t.Context(), client, to)
				if slot < 3 && (err != nil || got != slot) {
					t.Fatalf("%v: from %v to %s: slot %d, %v, want %d", tt, client, to, got, err, slot)
				}
				if slot >= 3 {
					select {
					case <-absent:
					case <-time.After(10 * time.Second):
						t.Fatalf("%v: from %v to %s: slot %d, %v, want the listener for absent slots", tt, client, to, got, err)
					}
				}
			}
		}
		fdtest.Check(t, g.StopHandshakes())
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(config.Slots.Of(config.Slots.Room()-1), uint16(g.Addr().Port)).String(), 100*time.Millisecond)
		if err == nil {
			conn.Close()
			t.Errorf("%v: a handshake after the last", tt)
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			t.Error(err)
		}
	}
}
