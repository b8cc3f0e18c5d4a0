package main

import (
	"github.com/hashicorp/go-hclog"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/accesslog"
)

// accessLog is the file of the access log, if there is one.
type accessLog struct{ *accesslog.Writer }

// openAccessLog gives a master its access log.
func openAccessLog(path string, json bool, config *master.Config) (accessLog, error) {
	if path == "" {
		return accessLog{}, nil
	}
	log := config.Logger
	w, err := accesslog.Open(path, func(leftOut int, err error) {
		log.Warn("access log not complete", "left_out", leftOut, "err", err)
	})
	if err != nil {
		return accessLog{}, err
	}
	config.AccessLog = hclog.New(&hclog.LoggerOptions{Name: "access", JSONFormat: json, Output: w})
	return accessLog{w}, nil
}

func (a accessLog) reopen() {
	if a.Writer != nil {
		a.Reopen()
	}
}

func (a accessLog) flush() {
	if a.Writer != nil {
		a.Flush()
	}
}

func (a accessLog) close() {
	if a.Writer != nil {
		a.Close()
	}
}
