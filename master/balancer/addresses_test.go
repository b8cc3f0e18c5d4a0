package balancer

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
	"github.com/handfast/handfast/hash"
)

// atSlotOne gives slots addresses of their own: 127.0.0.1, where the tests' balancers listen, is slot 1's.
func atSlotOne(c *Config) {
	c.Clients.Hash.Slots, _ = hash.ParseSlotAddresses("127.0.0.0/30")
	c.RetryDelay, c.WhenDown = 20*time.Minute, Next
}

// isReset fails unless a connection is reset before a byte of an answer.
func isReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d bytes, %v, want a reset", n, err)
	}
}

// TestSlotAddress: what comes to a slot's own address is the slot's, whoever the client is and whatever the strategy says.
func TestSlotAddress(t *testing.T) {
	table := NewTable(3)
	for slot, name := range []string{"zero", "one", "two"} {
		table.Fill(slot, busyWorker(name))
	}
	_, dial, _ := serveTest(t, table, atSlotOne)
	for last := byte(2); last < 20; last++ {
		reads(t, dial(last), "one")
	}
}

// TestSlotAddressAbsent: if there is no such slot a connection is reset at once.
func TestSlotAddressAbsent(t *testing.T) {
	table := NewTable(1)
	table.Fill(0, busyWorker("zero"))
	b, _, stop := serveTest(t, table, atSlotOne)
	if !fdtest.Poll(func() bool { return b.addresses.Load() != nil }) {
		t.Fatal("it does not listen")
	}
	conn, err := net.Dial("tcp", (*b.addresses.Load())[0].String())
	if err == nil {
		isReset(t, conn)
		conn.Close()
	} else if !errors.Is(err, unix.ECONNRESET) { // or a reset is what connect tells
		t.Error(err)
	}
	stop()
	if s := b.Stats(); s.Refused != 1 || s.HandedOff != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSlotAddressWaits: a connection waits for its slot, and is reset when that is removed: it never gets another one.
func TestSlotAddressWaits(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, busyWorker("zero"))
	b, dial, _ := serveTest(t, table, atSlotOne)
	first, second := dial(2), dial(3)
	if !fdtest.Poll(func() bool { return b.ParkedBySlot()[1] == 2 }) {
		t.Fatalf("%+v", b.Stats())
	}
	table.Resize(1)
	isReset(t, first)
	isReset(t, second)
	table.Resize(2)
	table.Fill(1, busyWorker("one"))
	reads(t, dial(2), "one")
}

// TestSlotAddressPatience: when its patience is over a connection is reset, and not given to the next slot.
func TestSlotAddressPatience(t *testing.T) {
	table := NewTable(2)
	table.Fill(0, busyWorker("zero"))
	_, dial, _ := serveTest(t, table, func(c *Config) { atSlotOne(c); c.RetryDelay, c.MaxRetries = time.Millisecond, 5 })
	isReset(t, dial(2))
}
