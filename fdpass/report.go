package fdpass

import "encoding/binary"

// Report is what a worker says of the connections that it accepted, by whatever route.
type Report struct {
	Open     uint64 // and has not closed yet
	Accepted uint64 // since it was started
}

// Where the numbers are in a report's record. The rest is zero.
const (
	openAt     = 4
	acceptedAt = 12
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
	binary.BigEndian.PutUint64(record[openAt:], r.Open)
	binary.BigEndian.PutUint64(record[acceptedAt:], r.Accepted)
	return b
}

// parseReport reads the record of a report, of at least recordSize bytes.
func parseReport(record []byte) Report {
	return Report{
		Open:     binary.BigEndian.Uint64(record[openAt:]),
		Accepted: binary.BigEndian.Uint64(record[acceptedAt:]),
	}
}

// slotsAt is where the number is in the record of slots. The rest is zero.
const slotsAt = 4

// TrySendSlots queues, without waiting, how many slots there are, or 0: connections are not to be handed back. The
// error is ErrFull when the worker does not keep up.
func (c *Conn) TrySendSlots(n int) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.out.body = appendSlots(c.out.body[:0], n)
	return c.transmit(nil, false)
}

func appendSlots(b []byte, n int) []byte {
	b = appendMessage(b, TypeSlots, []Handoff{{}}, false)
	binary.BigEndian.PutUint32(b[len(b)-recordSize+slotsAt:], uint32(n))
	return b
}

// parseSlots reads the record of slots, of at least recordSize bytes.
func parseSlots(record []byte) int { return int(binary.BigEndian.Uint32(record[slotsAt:])) }
