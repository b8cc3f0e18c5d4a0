package main

import (
	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/logging"
)

// accessLog is the file of the access log, if there is one.
type accessLog struct{ *logging.Queue }

// openAccessLog gives a master its access log.
func openAccessLog(path string, json bool, config *master.Config) (accessLog, error) {
	if path == "" {
		return accessLog{}, nil
	}
	q, err := logging.Open(path)
	if err != nil {
		return accessLog{}, err
	}
	log := config.Logger
	q.SetHooks(logging.Hooks{
		LeftOut: func(lines int) { log.Warn("access log not complete", "left_out", lines) },
		Failed: func(lines int, err error) {
			log.Warn("access log cannot be written, its lines wait", "left_out", lines, "err", err)
		},
	})
	config.AccessLog = hclog.New(&hclog.LoggerOptions{Name: "access", JSONFormat: json, Output: q})
	return accessLog{q}, nil
}

func (a accessLog) reopen() {
	if a.Queue != nil {
		a.Reopen()
	}
}

func (a accessLog) flush() {
	if a.Queue != nil {
		a.Flush()
	}
}

func (a accessLog) close() {
	if a.Queue != nil {
		a.Close()
	}
}

// savedLines are what a log leaves when another program takes the place of this one.
type savedLines logging.Rest

// saveLines returns those of a queue; of nil, none.
func saveLines(q *logging.Queue) (s savedLines) {
	if q != nil {
		s = savedLines(q.Rest())
	}
	return s
}

// resume writes them, or counts them as left out if there is no such log any more.
func (s savedLines) resume(q *logging.Queue) {
	if q != nil {
		q.Resume(logging.Rest(s))
	}
}
