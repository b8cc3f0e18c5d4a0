package kernelroute

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/master/sockdiag"
)

// queueAtTest is what the kernel lists in these tests: connections to port 80.
type queueAtTest struct {
	*waitClock
	sockets []sockdiag.Socket
	err     error
	looks   int
}

// newQueue makes a clock that sees a list. A client 10.0.0.N belongs to slot N%2.
func newQueue() *queueAtTest {
	q := new(queueAtTest)
	q.waitClock = newWaitClock(func(_, client netip.Addr) int { return int(client.As4()[3]) % 2 })
	q.list = func(port uint16, states ...sockdiag.State) ([]sockdiag.Socket, error) {
		q.looks++
		if port != 80 || !slices.Equal(states, []sockdiag.State{sockdiag.Established, sockdiag.CloseWait}) {
			return nil, errors.New("another question")
		}
		return slices.Clone(q.sockets), q.err
	}
	return q
}

// comes has a client connect, whose connection has this number for the kernel.
func (q *queueAtTest) comes(client byte, cookie uint64) {
	q.sockets = append(q.sockets, sockdiag.Socket{
		State: sockdiag.Established, Family: unix.AF_INET, Cookie: cookie,
		Local:  netip.MustParseAddrPort("10.0.0.99:80"),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, client}), 1234),
	})
}

// find returns a connection by its number.
func (q *queueAtTest) find(cookie uint64) *sockdiag.Socket {
	return &q.sockets[slices.IndexFunc(q.sockets, func(s sockdiag.Socket) bool { return s.Cookie == cookie })]
}

var (
	hereAtTest  = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 99).To4(), Port: 80}
	everyAtTest = &net.TCPAddr{IP: net.IPv4zero.To4(), Port: 80}
	otherAtTest = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 98).To4(), Port: 80}
)

// expect asks how many are overdue after two seconds.
func (q *queueAtTest) expect(t *testing.T, step string, at *net.TCPAddr, slot, want int) {
	t.Helper()
	if got := q.overdue(at, slot, 2*time.Second); got != want {
		t.Errorf("%s: %d are overdue at %v for slot %d, want %d", step, got, at, slot, want)
	}
}

// TestWaitClock: each connection's patience begins when it was first seen, and it counts for its own slot and the
// address that it came to, until somebody accepts it.
func TestWaitClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.expect(t, "nobody is there", hereAtTest, 0, 0)
		q.comes(2, 1)
		time.Sleep(time.Second)
		q.expect(t, "the first one is seen", hereAtTest, 0, 0)
		q.comes(4, 2)
		q.comes(3, 3)
		time.Sleep(time.Second)
		q.expect(t, "the first one has waited for a second", hereAtTest, 0, 0)
		time.Sleep(time.Second - 1)
		q.expect(t, "and almost two", hereAtTest, 0, 0)
		time.Sleep(clockLook)
		q.expect(t, "and two", hereAtTest, 0, 1)
		q.expect(t, "of every address", everyAtTest, 0, 1)
		q.expect(t, "not of another", otherAtTest, 0, 0)
		q.expect(t, "nor of another slot", hereAtTest, 1, 0)
		time.Sleep(time.Second)
		q.expect(t, "the second one, too", hereAtTest, 0, 2)
		q.expect(t, "and the one of the other slot", hereAtTest, 1, 1)

		q.find(1).Inode = 4711
		q.expect(t, "the first one was accepted", hereAtTest, 0, 1)
		q.sockets = q.sockets[:1]
		q.expect(t, "the others are gone", hereAtTest, 0, 0)
		q.find(1).Inode = 0
		q.expect(t, "an address and port again, by another connection", hereAtTest, 0, 0)
	})
}

// TestWaitClockLooksSeldom: many questions at once are answered by one look. But nobody is refused by what was known
// before: it looks again, for they may have been accepted meanwhile.
func TestWaitClockLooksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.comes(2, 1)
		for range 10 {
			q.expect(t, "it has just come", hereAtTest, 0, 0)
			q.expect(t, "it has just come", hereAtTest, 1, 0)
		}
		if q.looks != 1 {
			t.Errorf("%d looks, want 1", q.looks)
		}
		for range 4 {
			time.Sleep(clockLook)
			q.expect(t, "later", hereAtTest, 0, 0)
		}
		if q.looks != 5 {
			t.Errorf("%d looks, want one each time", q.looks)
		}
		time.Sleep(2 * time.Second)
		q.expect(t, "overdue", hereAtTest, 0, 1)
		q.find(1).Inode = 4711
		q.expect(t, "accepted within the same moment", hereAtTest, 0, 0)
	})
}

// TestWaitClockForgets: a connection that was seen long ago, and not since, may be another one. Its time begins anew: a
// client rather waits twice as long than is refused at once.
func TestWaitClockForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.comes(2, 1)
		q.expect(t, "it is seen", hereAtTest, 0, 0)
		time.Sleep(clockMemory)
		q.expect(t, "it is remembered", hereAtTest, 0, 1)
		time.Sleep(clockMemory + 1)
		q.expect(t, "it is forgotten", hereAtTest, 0, 0)
		time.Sleep(2 * time.Second)
		q.expect(t, "it has waited again", hereAtTest, 0, 1)
	})
}

// TestWaitClockBlind: where nothing can be seen nobody is overdue.
func TestWaitClockBlind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.comes(2, 1)
		q.expect(t, "it is seen", hereAtTest, 0, 0)
		time.Sleep(2 * time.Second)
		q.err = errors.New("no sock_diag here")
		q.expect(t, "blind", hereAtTest, 0, 0)
		q.err = nil
		q.expect(t, "not blind any more", hereAtTest, 0, 1)
	})
}

// TestWaitClockMoves: a client keeps the slot that it belonged to when it came. The number of slots may change, and with
// it where others of that address belong.
func TestWaitClockMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.comes(3, 1)
		q.expect(t, "it belongs to slot 1", hereAtTest, 1, 0)
		q.slotOf = func(_, _ netip.Addr) int { return 0 }
		time.Sleep(2 * time.Second)
		q.expect(t, "and goes on to", hereAtTest, 1, 1)
		q.expect(t, "and to no other", hereAtTest, 0, 0)
	})
}
