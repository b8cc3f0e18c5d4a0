//go:build 386 || s390x

package sock

// CallAccept is the number of no system call: here accept is one of the many calls in socketcall(2).
const CallAccept = 1<<31 - 1
