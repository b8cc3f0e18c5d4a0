package fdpass

import "encoding/binary"

// Report is what a worker says of the connections that it accepted, by whatever route.
type Report struct {
	Open     uint64 // and has not closed yet
	Accepted uint64 // since it was started
	Named    uint32 // requests on them, after the first one of each, whose session names the worker; modulo 1<<32
	Passed   uint32 // connections that other workers have passed to it, beside those that it accepted; likewise
}

// Where the numbers are in a report's record.
const (
	passedAt   = 0
	openAt     = 4
	acceptedAt = 12
	namedAt    = 20
)

// TrySendReport queues a report without waiting. The error is ErrFull when the master does
// not keep up: then the next one says it all.
func (c *Conn) TrySendReport(r Report) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.out.body = appendReport(c.out.body[:0], r)
	return c.transmit(nil, false)
}

func appendReport(b []byte, r Report) []byte {
	b = appendMessage(b, TypeReport, []Handoff{{}}, false)
	record := b[len(b)-recordSize:]
	binary.BigEndian.PutUint32(record[passedAt:], r.Passed)
	binary.BigEndian.PutUint64(record[openAt:], r.Open)
	binary.BigEndian.PutUint64(record[acceptedAt:], r.Accepted)
	binary.BigEndian.PutUint32(record[namedAt:], r.Named)
	return b
}

// parseReport reads the record of a report, of at least recordSize bytes.
func parseReport(record []byte) Report {
	return Report{
		Open:     binary.BigEndian.Uint64(record[openAt:]),
		Accepted: binary.BigEndian.Uint64(record[acceptedAt:]),
		Named:    binary.BigEndian.Uint32(record[namedAt:]),
		Passed:   binary.BigEndian.Uint32(record[passedAt:]),
	}
}

// Where the record of slots has their number, and whether the worker was replaced. The rest is zero.
const (
	slotsAt    = 4
	replacedAt = 8
)

// TrySendSlots queues, without waiting, how many slots there are, or 0: connections are not to be handed back; and whether another worker
// has taken the worker's slot over, so that only requests whose session names it are still its own. The
// error is ErrFull when the worker does not keep up.
func (c *Conn) TrySendSlots(n int, replaced bool) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.out.body = appendSlots(c.out.body[:0], n, replaced)
	return c.transmit(nil, false)
}

func appendSlots(b []byte, n int, replaced bool) []byte {
	b = appendMessage(b, TypeSlots, []Handoff{{}}, false)
	record := b[len(b)-recordSize:]
	binary.BigEndian.PutUint32(record[slotsAt:], uint32(n))
	if replaced {
		binary.BigEndian.PutUint32(record[replacedAt:], 1)
	}
	return b
}

// parseSlots reads the record of slots, of at least recordSize bytes.
func parseSlots(record []byte) (n int, replaced bool) {
	return int(binary.BigEndian.Uint32(record[slotsAt:])), binary.BigEndian.Uint32(record[replacedAt:]) != 0
}
