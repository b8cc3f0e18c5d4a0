package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/cmd/trial/nthcall"
)

// fault is a system call that fails, in some of the ways in which the kernel has it fail (its man page).
type fault struct {
	call   string
	number uint64
	errnos []syscall.Errno

	arg         int // see nthcall.Rule
	mask, value uint64
	in          string
	done        bool
	children    bool // of children, on their way to being workers

	byMaster bool // only where the master accepts
	injects  bool // only where workers are given what they listen on
	runtime  bool // Go's runtime makes it
	once     bool // it does not fail for long: the log is what is looked at
}

const (
	wholly      = ^uint64(0)
	seccompAdd  = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD
	seccompRecv = unix.SECCOMP_IOCTL_NOTIF_RECV
)

// faults are all of them. What is left out ends any Go program: a thread that cannot be made, Go's poller that cannot.
// And the kernel says EAGAIN to who accepts or receives only if nothing is there: whatever comes then wakes him.
var faults = []fault{
	{call: "accept4", number: unix.SYS_ACCEPT4, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM, unix.EINTR, unix.ECONNABORTED), byMaster: true},
	{call: "sendmsg", number: unix.SYS_SENDMSG, errnos: errnos(unix.ENOBUFS, unix.ENOMEM, unix.ETOOMANYREFS, unix.EAGAIN, unix.EINTR, unix.EPERM)},
	{call: "recvmsg", number: unix.SYS_RECVMSG, errnos: errnos(unix.EINTR, unix.ENOMEM)},
	{call: "recvfrom", number: unix.SYS_RECVFROM, errnos: errnos(unix.EINTR)},
	{call: "close", number: unix.SYS_CLOSE, errnos: errnos(unix.EINTR, unix.EIO), done: true},
	{call: "fork", number: unix.SYS_CLONE, errnos: errnos(unix.EAGAIN, unix.ENOMEM, unix.EPERM), mask: unix.CLONE_THREAD},
	{call: "execve", number: unix.SYS_EXECVE, errnos: errnos(unix.EAGAIN, unix.ENOMEM, unix.EPERM, unix.ENFILE), children: true},
	{call: "dup", number: unix.SYS_FCNTL, errnos: errnos(unix.EMFILE), arg: 1, mask: wholly, value: unix.F_DUPFD_CLOEXEC},
	{call: "setsockopt", number: unix.SYS_SETSOCKOPT, errnos: errnos(unix.ENOMEM, unix.EPERM), in: "reuseport"},
	{call: "socket", number: unix.SYS_SOCKET, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM)},
	{call: "socketpair", number: unix.SYS_SOCKETPAIR, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)},
	{call: "bind", number: unix.SYS_BIND, errnos: errnos(unix.ENOMEM, unix.EPERM, unix.EADDRINUSE)},
	{call: "listen", number: unix.SYS_LISTEN, errnos: errnos(unix.EADDRINUSE, unix.EPERM)},
	{call: "epoll_create1", number: unix.SYS_EPOLL_CREATE1, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)},
	{call: "epoll_ctl", number: unix.SYS_EPOLL_CTL, errnos: errnos(unix.ENOMEM, unix.ENOSPC)},
	{call: "epoll_pwait", number: unix.SYS_EPOLL_PWAIT, errnos: errnos(unix.EINTR), runtime: true},
	{call: "prctl", number: unix.SYS_PRCTL, errnos: errnos(unix.EPERM), children: true, injects: true, mask: wholly, value: unix.PR_SET_NO_NEW_PRIVS},
	{call: "seccomp", number: unix.SYS_SECCOMP, errnos: errnos(unix.EPERM, unix.ENOMEM, unix.EBUSY), children: true, injects: true},
	{call: "receive", number: unix.SYS_IOCTL, errnos: errnos(unix.EINTR, unix.ENOENT), injects: true, arg: 1, mask: wholly, value: seccompRecv},
	{call: "add", number: unix.SYS_IOCTL, errnos: errnos(unix.EMFILE), injects: true, arg: 1, mask: wholly, value: seccompAdd},
	{call: "log", number: unix.SYS_WRITE, errnos: errnos(unix.EAGAIN, unix.EINTR, unix.ENOSPC, unix.EIO), mask: wholly, value: uint64(unix.Stderr), once: true},
	{call: "openat", number: unix.SYS_OPENAT, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)},
	{call: "pipe2", number: unix.SYS_PIPE2, errnos: errnos(unix.EMFILE, unix.ENFILE)},
	{call: "pidfd_open", number: unix.SYS_PIDFD_OPEN, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)},
	{call: "memfd_create", number: unix.SYS_MEMFD_CREATE, errnos: errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)},
}

// atOnce are errors after which a call is rightly made again at once: they do not last.
var atOnce = errnos(unix.EINTR, unix.ENOENT, unix.ECONNABORTED)

func errnos(all ...syscall.Errno) []syscall.Errno { return all }

// kinds are how clients come to slots and connections to workers, and what worker is used for it.
var kinds = []struct {
	variant
	plays string
}{
	{variant{"master", "native"}, "http"},
	{variant{"kernel", "native"}, "http"},
	{variant{"master", "node"}, nodePlays},
	{variant{"kernel", "node"}, nodePlays},
	{variant{"master", "any"}, "http"},
	{variant{"kernel", "any"}, "http"},
	{variant{"kernel", "activation"}, "activated"},
}

// nodePlays is a script (prelude), and no part of testworker's.
const nodePlays = "server.listen(PORT)"

// cells returns all faults in all situations of all kinds: the n-th call fails, n by chance, and all fail for a while.
func failures(random *rand.Rand) (all []failure) {
	for _, k := range kinds {
		for situation := range situations {
			for _, f := range faults {
				if f.byMaster && k.route != "master" || f.injects && k.link != "any" || situation == "full" && k.route != "master" {
					continue // in the kernel's route clients wait in the kernel, which nobody can fill up
				}
				for _, errno := range f.errnos {
					if (k.link == "node" || k.link == "activation") && f.call == "sendmsg" && errno == unix.EAGAIN {
						continue // who sends waits until there is room, so this one has to be true, too
					}
					c := failure{variant: k.variant, plays: k.plays, situation: situation, fault: f, errno: errno, n: 1 << random.IntN(6)}
					c.n = 1 + random.IntN(c.n) // rather a small one
					all = append(all, c)
					if c.n = 0; !f.once && !slices.Contains(atOnce, errno) {
						all = append(all, c)
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b failure) int { return strings.Compare(a.String(), b.String()) })
	random.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all
}

// mended are failures that went wrong once, and what the log is to say since.
var mended = []failure{
	// The program that an upgrade had begun with ended, and left the workers alone.
	{
		variant: variant{"master", "native"}, plays: "http", situation: "upgrade", n: 1, errno: unix.EMFILE,
		fault: fault{call: "epoll_create1", number: unix.SYS_EPOLL_CREATE1, in: "mailbox.Restore"}, told: "upgraded, and cannot begin: trying again",
	},
	{
		variant: variant{"kernel", "any"}, plays: "http", situation: "upgrade", n: 1, errno: unix.ENFILE,
		fault: fault{call: "socketpair", number: unix.SYS_SOCKETPAIR, in: "bindswap.Check"}, told: "upgraded, and cannot begin: trying again",
	},
	// The worker bound the port by itself.
	{
		variant: variant{"kernel", "any"}, plays: "http", situation: "crash", n: 1, errno: unix.EMFILE,
		fault: fault{call: "openat", number: unix.SYS_OPENAT, in: "Caller.Protocol"}, told: "a worker's bind has failed, since its process could not be looked into",
	},
	// accept failed with EFAULT, which ends many a server.
	{
		variant: variant{"master", "any"}, plays: "http", situation: "connect", n: 1, errno: unix.ENFILE,
		fault: fault{call: "openat", number: unix.SYS_OPENAT, in: "writeName"}, told: "a worker could not be told whom it accepts, and has to accept again",
	},
	// Nothing woke who waited for room in a channel that had room.
	{
		variant: variant{"master", "node"}, plays: nodePlays, situation: "connect", n: 1, errno: unix.ENOBUFS,
		fault: fault{call: "sendmsg", number: unix.SYS_SENDMSG, in: "nodeipc.(*sending).sendmsg"},
	},
	// Its clients waited for a worker that could not be sent anything.
	{
		variant: variant{"master", "node"}, plays: nodePlays, situation: "connect", n: 1, errno: unix.EPERM,
		fault: fault{call: "sendmsg", number: unix.SYS_SENDMSG, in: "nodeipc.(*sending).sendmsg"}, told: "worker takes no more connections",
	},
	// What a worker writes was read under a lock, by a call that waited. And a worker was not heard.
	{
		variant: variant{"master", "native"}, plays: "http", situation: "crash", n: 1, errno: unix.ENOSPC,
		fault: fault{call: "epoll_ctl", number: unix.SYS_EPOLL_CTL, in: "output.(*Output).newStream"}, told: "worker cannot be started",
	},
	{
		variant: variant{"master", "node"}, plays: nodePlays, situation: "crash", n: 1, errno: unix.ENOSPC,
		fault: fault{call: "epoll_ctl", number: unix.SYS_EPOLL_CTL, in: "nodeipc.pair"}, told: "worker cannot be started",
	},
	// The machine was said to lack something else.
	{
		variant: variant{"kernel", "any"}, plays: "http", situation: "start", n: 1, errno: unix.EMFILE,
		fault: fault{call: "openat", number: unix.SYS_OPENAT, in: "bindswap.(*Link).handleBind"},
	},
	{
		variant: variant{"master", "any"}, plays: "http", situation: "start", n: 1, errno: unix.EMFILE,
		fault: fault{call: "openat", number: unix.SYS_OPENAT, in: "writeName"},
	},
}

// TestNthCallMended: each of mended.
func TestNthCallMended(t *testing.T) {
	itself(t)
	if !nthcall.Available {
		t.Skip("no call can be made to fail on this architecture")
	}
	for _, c := range mended {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			c.try(t)
		})
	}
}

// TestNthCall: whatever system call fails, nothing hangs, nothing leaks, no client is lost in silence, and the program goes on
// or ends with a message that names the cause. HANDFAST_TEST_CELLS says how many cells there are of all (none), which HANDFAST_TEST_SEED
// chooses.
func TestNthCall(t *testing.T) {
	itself(t)
	if !nthcall.Available {
		t.Skip("no call can be made to fail on this architecture")
	}
	seed, err := strconv.ParseUint(os.Getenv("HANDFAST_TEST_SEED"), 10, 64)
	if err != nil || seed == 0 {
		seed = rand.Uint64()
	}
	n, err := strconv.Atoi(cmp.Or(os.Getenv("HANDFAST_TEST_CELLS"), "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("HANDFAST_TEST_SEED=%d", seed)
	all := failures(rand.New(rand.NewPCG(seed, 0)))
	for _, c := range all[:min(n, len(all))] {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			c.try(t)
		})
	}
}

// failure is one fault in one situation.
type failure struct {
	variant
	plays     string // what testworker does, or nodePlays
	situation string
	fault
	errno syscall.Errno
	n     int    // the n-th call fails; 0: all, for a while
	told  string // what the log must say then; empty: whatever it does
}

func (c failure) String() string {
	which := "all"
	if c.n > 0 {
		which = fmt.Sprint(c.n)
	}
	return fmt.Sprintf("%s/%s/%s/%s/%s/%s", c.route, c.link, c.situation, c.call, unix.ErrnoName(c.errno), which)
}

func (c failure) rule() nthcall.Rule {
	r := nthcall.Rule{
		Call: c.number, Errno: c.errno, Skip: c.n - 1, Count: 1, Done: c.done, Children: c.children, OnlyOurs: !c.runtime && !c.children,
		Arg: c.arg, Mask: c.mask, Value: c.value, In: c.in,
	}
	if c.n == 0 {
		r.Skip, r.Count = 0, -1
	}
	return r
}
