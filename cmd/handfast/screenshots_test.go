package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxPicture is what a picture of the documentation may have, in bytes.
const maxPicture = 100_000

// capture takes a picture of the page as it is, in a window of this width.
func (b *browser) capture(width int, scheme, file string) {
	b.t.Helper()
	const most = 1600 // of a page that is longer only the beginning is taken
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 600, "deviceScaleFactor": 1, "mobile": width < 600})
	var height int
	fmt.Sscan(b.evaluate("String(Math.ceil(document.querySelector('main').getBoundingClientRect().height))"), &height)
	reply := b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": width, "height": min(height, most), "scale": 1}})
	var picture struct{ Data string }
	err := json.Unmarshal(reply, &picture)
	if err == nil {
		var text []byte
		if text, err = base64.StdEncoding.DecodeString(picture.Data); err == nil {
			if text, err = smaller(text); err == nil {
				err = os.WriteFile(file, text, 0o644)
			}
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// smaller is a picture in the colours that it has most of, which a byte can count.
func smaller(picture []byte) ([]byte, error) {
	from, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		return nil, err
	}
	bounds, count := from.Bounds(), make(map[color.Color]int)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[from.At(x, y)]++
		}
	}
	const colours = 48
	all := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	palette := color.Palette(all[:min(len(all), colours)])
	nearest := make(map[color.Color]uint8)
	for of := range count {
		nearest[of] = uint8(palette.Index(of))
	}
	to := image.NewPaletted(bounds, palette)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			to.SetColorIndex(x, y, nearest[from.At(x, y)])
		}
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	err = encoder.Encode(&out, to)
	return out.Bytes(), err
}

// TestScreenshots makes the pictures of OPERATING.md, if asked to (make screenshots). Else it wants each of them to be small, and shown.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	if os.Getenv("HANDFAST_TEST_UPDATE_SCREENSHOTS") != "" {
		takeScreenshots(t)
	}
	operating, err := os.ReadFile("OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("page-*.png")
	if err != nil || len(files) < 6 {
		t.Errorf("%d pictures, %v", len(files), err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > maxPicture {
			t.Errorf("%s has %d bytes, want %d at most (%v)", file, info.Size(), maxPicture, err)
		}
		if !strings.Contains(string(operating), "]("+file+")") {
			t.Errorf("OPERATING.md does not show %s", file)
		}
	}
}

// takeScreenshots has a shop with four slots served, reloaded and killed, and one with 32.
func takeScreenshots(t *testing.T) {
	gates := t.TempDir()
	gate := func(slot int) string { return fmt.Sprintf("%s/%d", gates, slot) }
	open := func(slots ...int) {
		for _, slot := range slots {
			if err := os.WriteFile(gate(slot), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	open(0, 1, 2, 3)
	m := start(t, 4, options{worker: []string{"gate", gates + "/{slot}"}, flags: []string{"--name", "shop", "--admin", "127.0.0.1:0", "--max-memory", "512MiB"}})
	for i := range 40 {
		defer m.socketFor(source(i)).CloseNow()
	}
	_, stop := m.load(4, "/")
	page := browse(t, "http://"+m.awaitCount("admin socket", 2)[1].Address+"/")
	kill(t, m.worker(2))
	m.awaitCount("worker ready", 5)
	page.shows("ready", "exited with signal killed", "MiB")
	page.capture(1000, "light", "page-light.png")
	page.capture(1000, "dark", "page-dark.png")
	page.capture(360, "dark", "page-narrow.png")

	os.Remove(gate(2))
	reload := m.begin("reload")
	page.shows("2 of 4 slots since")
	page.capture(1000, "light", "page-reload.png")
	open(2)
	reload.ends(exitOK)
	page.shows("reloaded", "draining")
	stop()
	kill(t, m.cmd.Process.Pid)
	page.shows("No answer since", "3s ago:")
	page.capture(1000, "light", "page-gone.png")

	many := start(t, 32, options{variant: variant{route: "kernel"}, flags: []string{"--name", "many", "--admin", "127.0.0.1:0", "--max-memory", "512MiB"}})
	for i := range 120 {
		defer many.socketFor(source(i)).CloseNow()
	}
	page = browse(t, "http://"+many.awaitCount("admin socket", 2)[1].Address+"/")
	page.shows("ready", "31", "MiB", "that are open)")
	page.capture(1000, "light", "page-32.png")
	if dir := os.Getenv("HANDFAST_TEST_MORE_SCREENSHOTS"); dir != "" { // to look at
		page.capture(360, "light", dir+"/narrow-32.png")
		page.capture(700, "dark", dir+"/700-32.png")
		page.capture(800, "dark", dir+"/800-32.png")
		page.capture(1600, "dark", dir+"/1600-32.png")
	}
}
