package main

import (
	"testing"

	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/reexec/reexectest"
)

func TestGoldenCommand(t *testing.T) {
	reexectest.Golden(t, part, predecessor{
		Listen: map[string]string{":8080": "[::]:8080"}, Passed: true, Socket: "/run/app.sock",
		Admin: []savedAdmin{{Asked: admin.Address{Network: "unix", Address: "x.sock"}, At: admin.Address{Network: "unix", Address: "/run/x.sock"}, FD: 7, ByName: true}},
		Log:   savedLines{Lines: []byte("line\n"), LeftOut: 1, Total: 2}, Access: savedLines{Lines: []byte("line\n"), LeftOut: 3, Total: 4},
	})
}
