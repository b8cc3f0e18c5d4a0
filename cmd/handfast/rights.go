package main

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/handfast/handfast/master/supervisor"
)

// rights reads whom workers run as.
func (v *values) rights(s *supervisor.Config) {
	s.Rights.NoNewPrivs = v.Bool("no-new-privs")
	name, group := v.String("user"), v.String("group")
	if name == "" && group == "" {
		return
	}
	if os.Geteuid() != 0 {
		v.fail("--user %q, --group %q: only root can run workers as somebody else: start handfast as root, or as that user and without these flags", name, group)
		return
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
			s.Env = append(s.Env, "USER="+u.Username, "LOGNAME="+u.Username, "HOME="+u.HomeDir)
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
