package supervisor

// Progress tells, from one look to the next, whether a worker takes what waits for it. Links of workers that cannot be asked
// have one for Ping.
type Progress struct {
	waited bool   // something did when it was looked last
	taken  uint64 // of that time
}

// Note is told whether something waits for the worker now, and how much the worker has taken so far. It returns false if something waited
// the last time, too, and none of it was taken since.
func (p *Progress) Note(waits bool, taken uint64) (alive bool) {
	alive = !waits || !p.waited || taken != p.taken
	p.waited, p.taken = waits, taken
	return alive
}
