package output

import (
	"testing"

	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{
		Streams: []savedStream{{Name: stdout, FD: 7, Held: []byte("half a li")}},
		Words:   [][]byte{[]byte("last words")},
	})
}
