// Package sdnotify hears what workers say of themselves by man 3 sd_notify, as a service manager does: READY=1, STOPPING=1, STATUS=,
// WATCHDOG=1 and WATCHDOG=trigger. Other assignments have no effect.
//
// Each worker has a socket of its own, in the abstract namespace (man 7 unix). Everybody on the machine may send there; what counts is
// what comes from a process of the worker's group, as the kernel says (SCM_CREDENTIALS). A process that is gone by then has said nothing:
// programs that end at once, as systemd-notify, wait until they are heard (BARRIER=1).
//
// message.go reads a message, receiver.go is the socket, upgrade.go leaves it to another program (package reexec).
package sdnotify
