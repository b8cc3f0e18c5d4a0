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
	b = appendMessage(b, TypeReport, []Handoff{{}})
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
