package metrics

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/handfast/handfast/master/reexec"
)

// part is where a bundle has what Save puts there.
var part = reexec.Part{Name: "metrics", Version: 1}

// The client library's own counters and histograms cannot begin with what another program has counted. These can.

// counters are a counter for each value of a label.
type counters struct {
	label string // empty: none, and the only word is the empty one
	desc  *prometheus.Desc

	mu     sync.Mutex
	values map[string]uint64
}

// newCounters makes them. Words are values of the label that begin at 0, so that the first one is an increase.
func newCounters(name, help, label string, words ...string) *counters {
	c := &counters{label: label, desc: describe(name, help, label), values: make(map[string]uint64)}
	for _, word := range words {
		c.values[word] = 0
	}
	return c
}

func describe(name, help, label string) *prometheus.Desc {
	var labels []string
	if label != "" {
		labels = []string{label}
	}
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

func (c *counters) inc(word string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values[word]++
}

func (c *counters) save() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.values)
}

// restore goes on with what was saved. What was counted since is added.
func (c *counters) restore(values map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for word, n := range values {
		c.values[word] += n
	}
}

// Describe implements prometheus.Collector.
func (c *counters) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

// Collect implements prometheus.Collector.
func (c *counters) Collect(to chan<- prometheus.Metric) {
	for word, n := range c.save() {
		to <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(n), values(c.label, word)...)
	}
}

// values returns the labels' values.
func values(label, word string) []string {
	if label == "" {
		return nil
	}
	return []string{word}
}

// fits returns an error for words where there is no label.
func fits[T any](label string, saved map[string]T) error {
	for word := range saved {
		if label == "" && word != "" {
			return fmt.Errorf("metrics: there is no label for %q", word)
		}
	}
	return nil
}

// histogram counts observations, by bucket: what is at most its bound, and more than the bound before.
type histogram struct {
	Count   uint64
	Sum     float64
	Buckets []uint64 // what is above the last bound is in Count alone
}

func (h *histogram) check(bounds []float64) error {
	left := h.Count
	for _, n := range h.Buckets {
		if n > left {
			return errors.New("metrics: a histogram has more in its buckets than was observed")
		}
		left -= n
	}
	if len(h.Buckets) != len(bounds) || h.Sum < 0 || math.IsNaN(h.Sum) || math.IsInf(h.Sum, 0) {
		return fmt.Errorf("metrics: a histogram of %d buckets with the sum %v, and not of %d", len(h.Buckets), h.Sum, len(bounds))
	}
	return nil
}

// histograms are a histogram for each value of a label.
type histograms struct {
	label  string // as for counters
	desc   *prometheus.Desc
	bounds []float64

	mu     sync.Mutex
	values map[string]*histogram
}

func newHistograms(name, help, label string, bounds []float64) *histograms {
	return &histograms{label: label, desc: describe(name, help, label), bounds: bounds, values: make(map[string]*histogram)}
}

// at returns the one for a word. mu is locked.
func (h *histograms) at(word string) *histogram {
	one := h.values[word]
	if one == nil {
		one = &histogram{Buckets: make([]uint64, len(h.bounds))}
		h.values[word] = one
	}
	return one
}

func (h *histograms) observe(word string, value float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.at(word)
	one.Count++
	one.Sum += value
	if i, _ := slices.BinarySearch(h.bounds, value); i < len(h.bounds) {
		one.Buckets[i]++
	}
}

func (h *histograms) save() map[string]histogram {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string]histogram, len(h.values))
	for word, one := range h.values {
		all[word] = histogram{one.Count, one.Sum, slices.Clone(one.Buckets)}
	}
	return all
}

func (h *histograms) restore(values map[string]histogram) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for word, before := range values {
		one := h.at(word)
		one.Count += before.Count
		one.Sum += before.Sum
		for i, n := range before.Buckets {
			one.Buckets[i] += n
		}
	}
}

// Describe implements prometheus.Collector.
func (h *histograms) Describe(to chan<- *prometheus.Desc) { to <- h.desc }

// Collect implements prometheus.Collector.
func (h *histograms) Collect(to chan<- prometheus.Metric) {
	for word, one := range h.save() {
		upTo, sum := make(map[float64]uint64, len(h.bounds)), uint64(0)
		for i, bound := range h.bounds {
			sum += one.Buckets[i]
			upTo[bound] = sum
		}
		to <- prometheus.MustNewConstHistogram(h.desc, one.Count, one.Sum, upTo, values(h.label, word)...)
	}
}

// saved is what the next program needs to go on counting.
type saved struct {
	Refused, Failures, Hung, Reloads map[string]uint64
	Parked, ReloadDuration           map[string]histogram
}

// Save puts into the bundle what was counted.
func (m *Metrics) Save(b *reexec.Bundle) error { return b.Put(part, m.save()) }

func (m *Metrics) save() saved {
	return saved{m.refused.save(), m.ended.save(), m.hung.save(), m.reloads.save(), m.parked.save(), m.reloadDuration.save()}
}

// Restore goes on with what the program before has counted.
func (m *Metrics) Restore(b *reexec.Bundle) error {
	var s saved
	if err := b.Get(part, &s); err != nil {
		return err
	}
	if err := fits(m.hung.label, s.Hung); err != nil {
		return err
	}
	for of, all := range map[*histograms]map[string]histogram{m.parked: s.Parked, m.reloadDuration: s.ReloadDuration} {
		if err := fits(of.label, all); err != nil {
			return err
		}
		for _, h := range all {
			if err := h.check(of.bounds); err != nil {
				return err
			}
		}
	}
	m.refused.restore(s.Refused)
	m.ended.restore(s.Failures)
	m.hung.restore(s.Hung)
	m.reloads.restore(s.Reloads)
	m.parked.restore(s.Parked)
	m.reloadDuration.restore(s.ReloadDuration)
	return nil
}
