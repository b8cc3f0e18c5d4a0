package main

import (
	"fmt"
	"io"
	"time"
)

// progress says which measurement is under way, and how much is left.
type progress struct {
	to    io.Writer
	begin time.Time
	done  int // measurements
	of    int
	took  int // how many of those that are done took their time
}

// start begins a line for a measurement.
func (p *progress) start(format string, args ...any) {
	fmt.Fprintf(p.to, "[%d/%d", p.done+1, p.of)
	if left := p.left(time.Since(p.begin)); left > 0 {
		fmt.Fprintf(p.to, ", %v left", left)
	}
	fmt.Fprintf(p.to, "] "+format+" ", args...)
}

// left is an estimate, from the time that has passed; zero: unknown.
func (p *progress) left(passed time.Duration) time.Duration {
	if p.took == 0 {
		return 0
	}
	left := passed / time.Duration(p.took) * time.Duration(p.of-p.done)
	return max(left.Round(time.Second), time.Second)
}

// end ends the line.
func (p *progress) end(format string, args ...any) {
	fmt.Fprintf(p.to, format+"\n", args...)
	p.done++
	p.took++
}

// skip is for what is not measured.
func (p *progress) skip() { p.done++ }
