//go:build !amd64

package listening

// Newer architectures have only ppoll, pselect6 and epoll_pwait.
const (
	sysPoll      = -1
	sysSelect    = -2
	sysEpollWait = -3
)
