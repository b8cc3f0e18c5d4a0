package mailbox

import (
	"testing"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGolden(t *testing.T) {
	reexectest.Golden(t, part, saved{
		Ours: 7, Theirs: 8, Offered: true, Listens: true, Drained: true, Left: "it asked for that",
		Report:         &fdpass.Report{Open: 3, Accepted: 9},
		MaxConnections: 100, Given: 12, Answers: true, Owes: true,
	})
}
