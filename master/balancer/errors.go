package balancer

import (
	"errors"
	"fmt"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/clientip"
)

// Why connections are refused. For want of a client there are also package
// clientip's errors, and for want of a worker fdpass.ErrLimit, fdpass.ErrFull and its like.
var (
	errEmpty         = errors.New("slot empty")
	errNoSlot        = errors.New("no such slot (--slot-address)")
	errCrowded       = errors.New("too many parked; the limits are --max-parked and half of the open files (ulimit -n, LimitNOFILE=)")
	errGreedy        = errors.New("too many parked of this client; the limit is --max-per-client")
	errCrowdedSilent = fmt.Errorf("no request yet, and %w", errCrowded)
	errStopping      = errors.New("stopping before the request was complete")
	errUnwilling     = errors.New("the worker refuses connections (maxConnections, or its limit of open files)")
	errNoFile        = errors.New("no free file descriptor")
)

// reasons are the words for why a connection has ended, for machines.
var reasons = map[error]string{
	errEmpty:                   "slot_empty",
	errNoSlot:                  "no_such_slot",
	errCrowded:                 "too_many_parked",
	errCrowdedSilent:           "too_many_parked",
	errGreedy:                  "too_many_of_client",
	errStopping:                "stopping",
	errUnwilling:               "worker_unwilling",
	errNoFile:                  "no_file_descriptor",
	fdpass.ErrLimit:            "too_many_open",
	fdpass.ErrFull:             "mailbox_full",
	fdpass.ErrInFlight:         "too_many_in_flight",
	fdpass.ErrClosed:           "mailbox_closed",
	fdpass.ErrNoFiles:          "no_file_descriptor",
	clientip.ErrSilent:         "no_request",
	clientip.ErrPartial:        "request_incomplete",
	clientip.ErrTooLarge:       "request_too_large",
	clientip.ErrNoProxyHeader:  "no_proxy_header",
	clientip.ErrBadProxyHeader: "bad_proxy_header",
	clientip.ErrProxyForbidden: "proxy_not_trusted",
	clientip.ErrGone:           "client_gone",
}
