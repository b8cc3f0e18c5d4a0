//go:build !amd64

package polled

// Newer architectures have only ppoll and pselect6.
const (
	sysPoll   = -1
	sysSelect = -2
)
