//go:build !386 && !s390x

package sock

import "golang.org/x/sys/unix"

// CallAccept is the number of accept(2), or one that no system call has where there is none: 386 and s390x have
// accept4, and accept only as one of the many calls in socketcall(2).
const CallAccept = unix.SYS_ACCEPT
