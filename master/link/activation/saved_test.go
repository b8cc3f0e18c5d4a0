package activation

import (
	"testing"

	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) { reexectest.Golden(t, part, saved{true}) }
