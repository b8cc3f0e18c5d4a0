package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// sample holds the figures of one peer in one round.
type sample map[string]float64

// results holds each peer's samples, one for each round; nil where it failed.
type results map[string][]sample

// column is a figure, or its ratio to another peer's in the same round: what
// else the machine did then harms both alike.
type column struct {
	of   string
	over string // a peer; empty: the figure itself
}

func (c column) head() string {
	if c.over == "" {
		return c.of
	}
	return c.of + " ÷ " + c.over
}

// cell returns a column's figures of one peer, round by round.
func (r results) cell(peer string, c column) summary {
	var values []float64
	for round, s := range r[peer] {
		value, ok := s[c.of]
		if c.over != "" && ok {
			var reference float64
			if others := r[c.over]; round < len(others) {
				reference = others[round][c.of]
			}
			value, ok = value/reference, reference != 0
		}
		if ok && !math.IsNaN(value) {
			values = append(values, value)
		}
	}
	return summarize(values)
}

// summary is what the rounds say together. Without a round there is no figure.
type summary struct {
	rounds            int
	median, low, high float64
}

func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	slices.Sort(values)
	n := len(values)
	return summary{n, (values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

func (s summary) String() string {
	if s.rounds == 0 {
		return "–"
	}
	return number(s.median)
}

// spread is the least and the greatest figure, if there is a difference.
func (s summary) spread() string {
	low, high := number(s.low), number(s.high)
	if s.rounds == 0 || low == high {
		return ""
	}
	return low + "–" + high
}

// number writes three significant digits.
func number(v float64) string {
	switch size := math.Abs(v); {
	case size < 0.0005:
		return "0"
	case size >= 999_500:
		return number(v/1e6) + "M"
	case size >= 999.5:
		return number(v/1e3) + "k"
	case size >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case size >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case size >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// percentile returns the least of the sorted values that the given part of them
// does not exceed (nearest rank); zero when there are none.
func percentile[T any](sorted []T, part float64) (value T) {
	if len(sorted) == 0 {
		return value
	}
	rank := int(math.Ceil(part * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// writeText writes a table for a terminal: medians, and below them the spread.
func (r results) writeText(w io.Writer, peers []string, columns []column) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(column) string) {
		fmt.Fprint(tab, name, "\t")
		for _, c := range columns {
			fmt.Fprint(tab, cell(c), "\t")
		}
		fmt.Fprintln(tab)
	}
	figure := func(c column) string { figure, _, _ := strings.Cut(c.of, " "); return figure }
	unit := func(c column) string { _, unit, _ := strings.Cut(c.of, " "); return unit }
	versus := func(c column) string {
		if c.over == "" {
			return ""
		}
		return "÷ " + c.over
	}
	row("", figure)
	row("", unit)
	row("", versus)
	for _, peer := range peers {
		row(peer, func(c column) string { return r.cell(peer, c).String() })
		row("", func(c column) string { return r.cell(peer, c).spread() })
	}
	return tab.Flush()
}

// writeMarkdown writes the same table with the spread in parentheses.
func (r results) writeMarkdown(w io.Writer, peers []string, columns []column) {
	fmt.Fprint(w, "| |")
	for _, c := range columns {
		fmt.Fprintf(w, " %s |", c.head())
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---:|", len(columns)))
	for _, peer := range peers {
		fmt.Fprintf(w, "| %s |", peer)
		for _, c := range columns {
			cell := r.cell(peer, c)
			fmt.Fprintf(w, " %s", cell)
			if spread := cell.spread(); spread != "" {
				fmt.Fprintf(w, " (%s)", spread)
			}
			fmt.Fprint(w, " |")
		}
		fmt.Fprintln(w)
	}
}
