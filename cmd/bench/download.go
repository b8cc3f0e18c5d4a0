package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// download gets one large answer. curl does, as well as anything: no loopback
// source addresses are asked for, and nothing in TIME-WAIT matters.
func download(ctx context.Context, s *stage) (sample, error) {
	want := int64(s.download) << 20
	var errs strings.Builder
	curl := exec.CommandContext(ctx, program("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "/dev/null",
		"--write-out", "%{size_download} %{speed_download}", fmt.Sprintf("http://%s/download?bytes=%d", s.address, want))
	curl.Stderr = &errs
	var out []byte
	used, _, err := s.metered(func() (err error) {
		if out, err = curl.Output(); err != nil {
			return fmt.Errorf("curl: %w\n%s", err, errs.String())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var size int64
	var perSecond float64
	if _, err := fmt.Sscan(string(out), &size, &perSecond); err != nil || size != want {
		return nil, fmt.Errorf("curl got %q, want %d bytes", out, want)
	}
	used.load += curl.ProcessState.UserTime() + curl.ProcessState.SystemTime()
	gib := float64(size) / (1 << 30)
	return sample{
		throughput:      perSecond / 1e6,
		balancerByteCPU: millis(used.balancer) / gib,
		workerByteCPU:   millis(used.workers) / gib,
		totalByteCPU:    millis(used.total()) / gib,
	}, nil
}
