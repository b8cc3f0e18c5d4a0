package balancer

import "github.com/handfast/handfast/master/clientip"

// Strategy says where clients belong. It is asked once per connection on the
// straight line and must be safe for use by several goroutines.
type Strategy interface {
	// Slot returns the client's choice of the given rank among slots 0 to
	// slots-1: rank 0 is where it belongs, ranks up to slots-1 name the other
	// slots in the order in which they stand in.
	Slot(client clientip.Client, slots, rank int) int
}

// ByKey is the Strategy that hashes the client's key.
type ByKey struct{}

// Slot implements Strategy.
func (ByKey) Slot(client clientip.Client, slots, rank int) int {
	return client.Key.Ranked(slots, rank)
}
