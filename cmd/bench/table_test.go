package main

import (
	"math"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, test := range []struct {
		sorted []int
		part   float64
		want   int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0.5, 7},
		{[]int{7}, 0.999, 7},
		{[]int{1, 2}, 0.5, 1},
		{[]int{1, 2, 3}, 0.5, 2},
		{hundred, 0, 1},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred, 1, 100},
	} {
		if got := percentile(test.sorted, test.part); got != test.want {
			t.Errorf("percentile of %d values, %v: %d, want %d", len(test.sorted), test.part, got, test.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   summary
	}{
		{nil, summary{}},
		{[]float64{5}, summary{1, 5, 5, 5}},
		{[]float64{9, 1, 5}, summary{3, 5, 1, 9}},
		{[]float64{4, 1, 2, 9}, summary{4, 3, 1, 9}},
	} {
		if got := summarize(test.values); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.values, got, test.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for value, want := range map[float64]string{
		0:         "0",
		0.0004:    "0",
		0.0804:    "0.080",
		0.9994:    "0.999",
		0.9996:    "1.00",
		9.994:     "9.99",
		9.996:     "10.0",
		17.32:     "17.3",
		99.96:     "100",
		999.4:     "999",
		999.6:     "1.00k",
		13_140:    "13.1k",
		999_499:   "999k",
		1_234_567: "1.23M",
		-1536:     "-1.54k",
	} {
		if got := number(value); got != want {
			t.Errorf("%v: %q, want %q", value, got, want)
		}
	}
}

var someResults = results{
	"a": {{"conn/s": 100}, {"conn/s": 300}, {"conn/s": 200}},
	"b": {{"conn/s": 50}, nil, {"conn/s": 400, "failed": 2}},
	"c": {{"conn/s": math.NaN()}},
}

// A ratio is formed round by round, and a round in which either failed has none.
func TestCell(t *testing.T) {
	for _, test := range []struct {
		peer string
		column
		want summary
	}{
		{"a", column{of: "conn/s"}, summary{3, 200, 100, 300}},
		{"b", column{of: "conn/s"}, summary{2, 225, 50, 400}},
		{"b", column{of: "conn/s", over: "a"}, summary{2, 1.25, 0.5, 2}},
		{"a", column{of: "conn/s", over: "b"}, summary{2, 1.25, 0.5, 2}},
		{"a", column{of: "conn/s", over: "absent"}, summary{}},
		{"a", column{of: "failed"}, summary{}},
		{"b", column{of: "failed"}, summary{1, 2, 2, 2}},
		{"c", column{of: "conn/s"}, summary{}},
		{"absent", column{of: "conn/s"}, summary{}},
	} {
		if got := someResults.cell(test.peer, test.column); got != test.want {
			t.Errorf("%s, %s: %+v, want %+v", test.peer, test.column.head(), got, test.want)
		}
	}
}

func TestWriteTables(t *testing.T) {
	columns := []column{{of: "conn/s", over: "a"}, {of: "conn/s"}}
	peers := []string{"a", "b", "c"}

	var page strings.Builder
	someResults.writeMarkdown(&page, peers, columns)
	want := `| | conn/s ÷ a | conn/s |
|---|---:|---:|
| a | 1.00 | 200 (100–300) |
| b | 1.25 (0.500–2.00) | 225 (50.0–400) |
| c | – | – |
`
	if got := page.String(); got != want {
		t.Errorf("Markdown:\n%s\nwant:\n%s", got, want)
	}

	var text strings.Builder
	if err := someResults.writeText(&text, peers, columns); err != nil {
		t.Fatal(err)
	}
	want = `
        conn/s   conn/s

           ÷ a
  a       1.00      200
                100–300
  b       1.25      225
     0.500–2.00  50.0–400
  c          –        –

`
	if got := text.String(); squeeze(got) != squeeze(want) {
		t.Errorf("text:\n%s\nwant, spaces apart:\n%s", got, want)
	}
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }
