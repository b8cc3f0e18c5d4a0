package hash

import (
	"net/netip"
	"testing"
)

func TestSlotAddresses(t *testing.T) {
	for _, tt := range []struct {
		network string
		room    int
		slot    int
		address string
	}{
		{"127.77.0.0/24", 256, 2, "127.77.0.2"},
		{"127.77.0.4/30", 4, 3, "127.77.0.7"},
		{"10.0.0.0/8", MaxSlots, 1023, "10.0.3.255"},
		{"192.0.2.7/32", 1, 0, "192.0.2.7"},
		{"fd77::/112", MaxSlots, 513, "fd77::201"},
		{"2001:db8::/96", MaxSlots, 1, "2001:db8::1"},
	} {
		own, err := ParseSlotAddresses(tt.network)
		addr := netip.MustParseAddr(tt.address)
		if err != nil || own.Room() != tt.room || own.Of(tt.slot) != addr {
			t.Errorf("%s: %v, room for %d, slot %d at %v; want %d, %v", tt.network, err, own.Room(), tt.slot, own.Of(tt.slot), tt.room, addr)
		}
		for _, addr := range []netip.Addr{addr, netip.AddrFrom16(addr.As16())} { // mapped, if it is of IPv4
			if slot, ok := own.Slot(addr); !ok || slot != tt.slot {
				t.Errorf("%s: %v is slot %d, %v, want %d", tt.network, addr, slot, ok, tt.slot)
			}
		}
		if own.Of(own.Room()).IsValid() || own.Of(-1).IsValid() {
			t.Errorf("%s: slots that have no address have one", tt.network)
		}
		if slot, ok := own.Slot(netip.MustParseAddr("203.0.113.9")); ok {
			t.Errorf("%s: another address is slot %d", tt.network, slot)
		}
	}
	if slot, ok := (SlotAddresses{netip.MustParsePrefix("10.0.0.0/8")}).Slot(netip.MustParseAddr("10.9.9.9")); slot != MaxSlots || !ok {
		t.Errorf("beyond all slots: %d, %v", slot, ok)
	}
	for _, wrong := range []string{"", "127.77.0.0", "127.77.0.1/24", "0.0.0.0/0", "fd77::/64", "::ffff:127.77.0.0/120", "x/8"} {
		if own, err := ParseSlotAddresses(wrong); err == nil {
			t.Errorf("%q: %v, no error", wrong, own)
		}
	}
	var none SlotAddresses
	if _, ok := none.Slot(netip.MustParseAddr("127.0.0.1")); ok || none.Room() != 0 || none.Of(0).IsValid() || none.Validate() != nil {
		t.Error("the zero value has addresses")
	}
}

// TestSlotKeyWords: such a key is the slot's, however many there are.
func TestSlotKeyWords(t *testing.T) {
	factor, winner := SlotKeyWords()
	for slot := range MaxSlots {
		key := Key(mix(uint32(slot+1)*factor) ^ winner)
		for _, slots := range []int{slot + 1, MaxSlots} {
			if got := key.Slot(slots); got != slot {
				t.Fatalf("the key of slot %d is in slot %d of %d", slot, got, slots)
			}
		}
	}
}
