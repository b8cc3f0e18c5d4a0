package bindswap

import (
	"net/netip"
	"testing"

	"github.com/handfast/handfast/master/link/foreign"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{
		Saved: foreign.Saved{Notifs: 7, PIDs: []int{101, 102}, Told: true},
		Taken: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")},
	})
}
