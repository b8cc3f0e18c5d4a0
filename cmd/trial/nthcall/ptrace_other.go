//go:build !amd64

package nthcall

const (
	Available = false
	marker    = ""
)

func Main() {}
