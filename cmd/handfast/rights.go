package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/supervisor"
)

// rights reads the user that workers run as.
func (v *values) rights(s *supervisor.Config) {
	s.Rights.NoNewPrivs = v.Bool("no-new-privs")
	name, group := v.String("user"), v.String("group")
	if name == "" && v.Bool("drop-root") {
		v.fail("--drop-root: needs --user, which the master becomes")
		return
	}
	if name == "" && group == "" {
		return
	}
	if os.Geteuid() != 0 {
		defer func() {
			// A process that is this user already (after --drop-root, in an upgrade) need not change.
			if c := s.Rights.User; c != nil && c.Uid == uint32(os.Geteuid()) && c.Gid == uint32(os.Getegid()) {
				s.Rights.User = nil
				return
			}
			v.fail("--user %q, --group %q: only root can run workers as somebody else: start handfast as root, or as that user", name, group)
		}()
	}
	credential := &syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	if name != "" {
		u, err := findUser(name)
		if err != nil {
			v.fail("--user %q: %w", name, err)
			return
		}
		credential.Uid, credential.Gid = number(u.Uid), number(u.Gid)
		groups, _ := u.GroupIds()
		for _, id := range groups {
			if id != u.Gid { // which --group may stand in for
				credential.Groups = append(credential.Groups, number(id))
			}
		}
		if u.Username != "" {
			s.Rights.Env = append(s.Rights.Env, "USER="+u.Username, "LOGNAME="+u.Username, "HOME="+u.HomeDir)
		}
	}
	if group != "" {
		g, err := findGroup(group)
		if err != nil {
			v.fail("--group %q: %w", group, err)
			return
		}
		credential.Gid = g
	}
	credential.Groups = append(credential.Groups, credential.Gid) // as initgroups(3) does
	s.Rights.User = credential
}

// dropRoot makes this process, and so the workers, run as the user that workers were to run as. What
// is open stays so; the admin sockets, the access log and the listeners of slots become that user's,
// who may then open more of them.
func dropRoot(config *master.Config, sockets []net.Listener, access string) error {
	as := config.Supervisor.Rights.User
	if as == nil {
		return nil // we are that user
	}
	config.Supervisor.Rights.User = nil
	uid, gid := int(as.Uid), int(as.Gid)
	var errs []error
	for _, g := range config.Groups {
		errs = append(errs, g.Chown(uid, gid))
	}
	for _, socket := range sockets {
		if at := socket.Addr(); at.Network() == "unix" {
			errs = append(errs, os.Lchown(at.String(), uid, gid))
		}
	}
	if access != "" && access != "-" {
		errs = append(errs, os.Chown(access, uid, gid))
	}
	var groups []int
	for _, g := range as.Groups {
		groups = append(groups, int(g))
	}
	errs = append(errs,
		os.NewSyscallError("setgroups", syscall.Setgroups(groups)),
		os.NewSyscallError("setgid", syscall.Setgid(gid)),
		os.NewSyscallError("setuid", syscall.Setuid(uid)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("--drop-root: %w", err)
	}
	config.Logger.Info("root dropped", "user", uid, "group", gid)
	return nil
}

// findUser finds a user by name or number. A number need not be in the list of users; its
// group then is of the same number.
func findUser(name string) (*user.User, error) {
	u, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); !unknown || !isID(name) {
		return u, err
	}
	if u, err = user.LookupId(name); err == nil {
		return u, nil
	}
	return &user.User{Uid: name, Gid: name}, nil
}

func findGroup(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err == nil {
		return number(g.Gid), nil
	}
	if isID(name) {
		return number(name), nil
	}
	return 0, err
}

func isID(text string) bool {
	_, err := strconv.ParseUint(text, 10, 32)
	return err == nil
}

// number is that of a user or group.
func number(id string) uint32 {
	n, _ := strconv.ParseUint(id, 10, 32)
	return uint32(n)
}
