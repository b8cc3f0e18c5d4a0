package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
	"strings"
)

// Measures of a plot, in pixels.
const (
	plotWidth  = 880
	labelWidth = 230
	panelGap   = 24
	valueWidth = 56 // right of the longest bar
	headHeight = 46
	rowHeight  = 24
	barHeight  = 14
	footHeight = 10
	fontSize   = 13
)

// Colours with about the same contrast to white and to the black of dark pages.
const (
	colourText  = "#767b82"
	colourOurs  = "#2f81f7"
	colourOther = colourText
	barOpacity  = "0.6" // for the whisker to be seen on the bar
)

// plot draws a panel for each figure with a bar for each row: the median, and a
// whisker from the least to the greatest. The same figures make the same bytes.
func plot(title string, rows, figures []string, cell func(row string, c column) summary) []byte {
	var svg bytes.Buffer
	height := headHeight + rowHeight*len(rows) + footHeight
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="%s"`+
		` font-family="system-ui, sans-serif" font-size="%d" fill="%s">`+"\n", plotWidth, height, html.EscapeString(title), fontSize, colourText)
	fmt.Fprintf(&svg, "<title>%s</title>\n", html.EscapeString(title))
	for i, row := range rows {
		text(&svg, labelWidth-10, rowMiddle(i), "end", weight(row), row)
	}
	width := (plotWidth-labelWidth+panelGap)/max(len(figures), 1) - panelGap
	for i, figure := range figures {
		p := panel{left: float64(labelWidth + i*(width+panelGap)), width: float64(width), rows: rows}
		for _, row := range rows {
			p.values = append(p.values, cell(row, column{of: figure}))
		}
		p.draw(&svg, figure)
	}
	fmt.Fprintln(&svg, "</svg>")
	return svg.Bytes()
}

// panel is what is drawn of one figure.
type panel struct {
	left, width float64
	rows        []string
	values      []summary
}

func (p panel) draw(svg *bytes.Buffer, figure string) {
	text(svg, p.left, 16, "start", "bold", figure)
	better := "less is better"
	if slices.Contains(moreIsBetter, figure) {
		better = "more is better"
	}
	text(svg, p.left, 33, "start", "normal", better)
	for i, v := range p.values {
		p.bar(svg, i, v)
	}
	fmt.Fprintf(svg, `<line x1="%.1f" y1="%d" x2="%.1[1]f" y2="%[3]d" stroke="%[4]s"/>`+"\n", p.left, headHeight, headHeight+rowHeight*len(p.rows), colourText)
}

func (p panel) bar(svg *bytes.Buffer, i int, v summary) {
	y := rowMiddle(i)
	colour := colourOther
	if ours(p.rows[i]) {
		colour = colourOurs
	}
	fmt.Fprintf(svg, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s" fill-opacity="%s"/>`+"\n",
		p.left, y-barHeight/2, p.x(v.median)-p.left, barHeight, colour, barOpacity)
	end := p.x(v.median)
	if v.spread() != "" {
		low, high := p.x(v.low), p.x(v.high)
		fmt.Fprintf(svg, `<path d="M%.1f %.1fv6m0-3H%.1fm0-3v6" stroke="%s" fill="none"/>`+"\n", low, y-3, high, colourText)
		end = high
	}
	text(svg, end+6, y, "start", weight(p.rows[i]), v.String())
}

// x is where a value is in the panel; the greatest leaves room for its number.
func (p panel) x(value float64) float64 {
	greatest := 0.0
	for _, v := range p.values {
		greatest = max(greatest, v.high)
	}
	if greatest == 0 {
		return p.left
	}
	return p.left + max(value, 0)/greatest*(p.width-valueWidth)
}

func rowMiddle(i int) float64 { return headHeight + rowHeight*(float64(i)+0.5) }

// ours are the rows that are highlighted.
func ours(row string) bool { return strings.HasPrefix(row, "handfast") }

func weight(row string) string {
	if ours(row) {
		return "bold"
	}
	return "normal"
}

// text writes on a line whose middle is at y.
func text(svg *bytes.Buffer, x, y float64, anchor, weight, s string) {
	fmt.Fprintf(svg, `<text x="%.1f" y="%.1f" text-anchor="%s" font-weight="%s">%s</text>`+"\n", x, y+fontSize*0.35, anchor, weight, html.EscapeString(s))
}
