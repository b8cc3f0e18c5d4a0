package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/worker"
)

// foreign are what playReturns hands back, by slot: descriptors that the worker was not handed, or of its connection more than
// there are.
var foreign = []func(handed fdpass.Handoff) ([]fdpass.Handoff, error){
	1: func(fdpass.Handoff) ([]fdpass.Handoff, error) { // a listener
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		return []fdpass.Handoff{{FD: fd}}, err
	},
	2: func(fdpass.Handoff) ([]fdpass.Handoff, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return []fdpass.Handoff{{FD: fd}}, err
	},
	3: func(fdpass.Handoff) ([]fdpass.Handoff, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return []fdpass.Handoff{{FD: fd}}, err
	},
	4: func(fdpass.Handoff) ([]fdpass.Handoff, error) {
		fd, err := lingering() // a connection to elsewhere, and one that is slow to close
		return []fdpass.Handoff{{FD: fd}}, err
	},
	5: func(handed fdpass.Handoff) (all []fdpass.Handoff, err error) {
		for range 1000 {
			all = append(all, handed)
		}
		return all, nil
	},
	6: func(handed fdpass.Handoff) ([]fdpass.Handoff, error) { return []fdpass.Handoff{handed}, nil }, // see spoil
}

// playReturns hands back what foreign has for its slot when it is handed a connection, the first time in a slot that
// is not 0; served tells. Else it serves as http.
func playReturns(dir string) (served bool) {
	self, _ := worker.Self()
	if self.Slot == 0 || os.Mkdir(filepath.Join(dir, strconv.Itoa(self.Slot)), 0o700) != nil {
		return true
	}
	if err := handBackForeign(self.Slot); err != nil {
		fmt.Fprintln(os.Stderr, "returns:", err)
		return false
	}
	fmt.Fprintln(os.Stderr, "returned")
	forever()
	return false
}

func handBackForeign(slot int) error {
	mailbox, err := fdpass.NewConn(os.NewFile(3, "mailbox"))
	if err != nil {
		return err
	}
	mailbox.SendDetails()
	for _, t := range []fdpass.Type{fdpass.TypeHandBack, fdpass.TypeReady} {
		if err := mailbox.Send(t, nil); err != nil {
			return err
		}
	}
	var m fdpass.Message
	for len(m.Handoffs) == 0 {
		if err := mailbox.Receive(&m); err != nil {
			return err
		}
	}
	all, err := foreign[slot](m.Handoffs[0])
	if err != nil {
		return err
	}
	if slot == 6 {
		return spoil(all)
	}
	for _, h := range all {
		if mailbox.Send(fdpass.TypeHandBack, []fdpass.Handoff{h}) != nil {
			break // the master has heard enough
		}
	}
	return nil
}

// spoil hands back what says that it has more details than it has.
func spoil(all []fdpass.Handoff) error {
	pair, file, err := fdpass.Pair()
	if err != nil {
		return err
	}
	pair.SendDetails()
	all[0].Details = "details"
	if err := pair.Send(fdpass.TypeHandBack, all); err != nil {
		return err
	}
	message := make([]byte, 8192)
	n, _, _, _, err := unix.Recvmsg(int(file.Fd()), message, nil, 0)
	if err != nil {
		return err
	}
	message[7]++
	return unix.Sendmsg(3, message[:n+1], unix.UnixRights(all[0].FD), nil, unix.MSG_NOSIGNAL)
}
