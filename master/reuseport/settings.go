package reuseport

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/fdpass/sock"
)

// setting is an option of a socket that is a number. Its connections inherit most of them.
type setting struct{ level, option int }

// The settings that a listener's user may change for the next one. Beside them there are keys of
// TCP_MD5SIG and TCP-AO, which nobody can list.
var (
	numbers = []setting{
		{unix.SOL_SOCKET, unix.SO_REUSEPORT},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE},
		{unix.SOL_SOCKET, unix.SO_DONTROUTE},
		{unix.SOL_SOCKET, unix.SO_RCVLOWAT},
		{unix.SOL_SOCKET, unix.SO_PRIORITY},
		{unix.SOL_SOCKET, unix.SO_MARK},
		{unix.SOL_SOCKET, unix.SO_INCOMING_CPU},
		{unix.SOL_SOCKET, unix.SO_BUSY_POLL},
		{unix.SOL_SOCKET, unix.SO_ZEROCOPY},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMP},
		{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY},
		{unix.IPPROTO_TCP, unix.TCP_CORK},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{unix.IPPROTO_TCP, unix.TCP_SYNCNT},
		{unix.IPPROTO_TCP, unix.TCP_LINGER2},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT},
		{unix.IPPROTO_TCP, unix.TCP_QUICKACK},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
		{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT},
		{unix.IPPROTO_TCP, unix.TCP_FASTOPEN},
		{unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE},
		{unix.IPPROTO_TCP, unix.TCP_SAVE_SYN},
		{unix.IPPROTO_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS},
		{unix.IPPROTO_IP, unix.IP_TOS},
		{unix.IPPROTO_IP, unix.IP_TTL},
		{unix.IPPROTO_IP, unix.IP_MINTTL},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},
		{unix.IPPROTO_IP, unix.IP_RECVERR},
		{unix.IPPROTO_IP, unix.IP_FREEBIND},
		{unix.IPPROTO_IP, unix.IP_TRANSPARENT},
		{unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT},
		{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS},
		{unix.IPPROTO_IPV6, unix.IPV6_TCLASS},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVERR},
	}
	texts = []setting{
		{unix.SOL_SOCKET, unix.SO_BINDTODEVICE},
		{unix.IPPROTO_TCP, unix.TCP_CONGESTION},
	}
	timeouts = []setting{
		{unix.SOL_SOCKET, unix.SO_RCVTIMEO},
		{unix.SOL_SOCKET, unix.SO_SNDTIMEO},
	}
	buffers = []setting{
		{unix.SOL_SOCKET, unix.SO_RCVBUF},
		{unix.SOL_SOCKET, unix.SO_SNDBUF},
	}
)

// soBufLock tells which buffers have a size that was set (asm-generic/socket.h; since Linux 5.15).
const soBufLock = 72

// noClamp is the largest window of TCP, by which a listener's window is not bounded, either; 0, which
// says that, is refused (do_tcp_setsockopt).
const noClamp = 65535 << 14

// settings are what readSettings has found. Those that the socket does not have are missing.
type settings struct {
	numbers map[setting]int // buffers among them
	texts   map[setting]string
}

// readSettings finds out from our own listener, which nobody else has, what a member is before its
// first user: the same, but neither alone nor silent.
func readSettings(fd int) settings {
	s := settings{make(map[setting]int), make(map[setting]string)}
	for _, list := range [][]setting{numbers, buffers} {
		for _, o := range list {
			if value, err := unix.GetsockoptInt(fd, o.level, o.option); err == nil {
				s.numbers[o] = value
			}
		}
	}
	for _, o := range texts {
		if value, err := unix.GetsockoptString(fd, o.level, o.option); err == nil {
			s.texts[o] = value
		}
	}
	s.numbers[setting{unix.SOL_SOCKET, unix.SO_REUSEPORT}] = 1
	for _, o := range []setting{{unix.IPPROTO_IP, unix.IP_MINTTL}, {unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT}} {
		if _, ok := s.numbers[o]; ok {
			s.numbers[o] = 0
		}
	}
	return s
}

// prepare sets on another socket, before that is bound, what decides where it can be.
func (s settings) prepare(fd int) (err error) {
	if s.numbers[setting{unix.IPPROTO_IP, unix.IP_FREEBIND}] != 0 {
		err = fdpass.SetFreebind(fd)
	}
	if s.texts[setting{unix.SOL_SOCKET, unix.SO_BINDTODEVICE}] != "" {
		err = errors.Join(err, sock.BindToLoopback(fd))
	}
	return err
}

// restore puts the settings back that are not what they were. The error is ErrSpoiled if one of
// them stays.
func (s settings) restore(fd int) error {
	var errs []error
	differs := func(o setting) bool {
		value, err := unix.GetsockoptInt(fd, o.level, o.option)
		return err == nil && value != s.numbers[o]
	}
	for _, o := range numbers {
		if value, ok := s.numbers[o]; ok && differs(o) {
			errs = append(errs, o.check(unix.SetsockoptInt(fd, o.level, o.option, value)))
		}
	}
	for _, o := range texts {
		if value, err := unix.GetsockoptString(fd, o.level, o.option); err == nil && value != s.texts[o] {
			errs = append(errs, o.check(unix.SetsockoptString(fd, o.level, o.option, s.texts[o])))
		}
	}
	for _, o := range timeouts {
		errs = append(errs, o.check(unix.SetsockoptTimeval(fd, o.level, o.option, &unix.Timeval{})))
	}
	for _, o := range buffers {
		if value, ok := s.numbers[o]; ok && differs(o) {
			errs = append(errs, o.check(unix.SetsockoptInt(fd, o.level, o.option, value/2))) // which is doubled (man 7 socket)
		}
	}
	if clamp := (setting{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP}); differs(clamp) {
		errs = append(errs, clamp.check(unix.SetsockoptInt(fd, clamp.level, clamp.option, noClamp)))
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, soBufLock, 0) // their sizes are the kernel's affair again
	// A user's size of segments; 0 is none.
	errs = append(errs,
		setting{unix.IPPROTO_TCP, unix.TCP_MAXSEG}.check(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 0)),
		setting{unix.SOL_SOCKET, unix.SO_LINGER}.check(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})))
	return errors.Join(errs...)
}

func (o setting) check(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS): // no process's doing, and for a moment
		return fmt.Errorf("reuseport: option %d of level %d: %w", o.option, o.level, err)
	}
	return fmt.Errorf("%w: option %d of level %d cannot be put back: %w", ErrSpoiled, o.option, o.level, err)
}
