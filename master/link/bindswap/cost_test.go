package bindswap

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/handfast/handfast/fdpass/fdtest"
	"golang.org/x/sys/unix"
)

// costRole makes the test binary measure a system call.
const costRole = "HANDFAST_TEST_COST"

// playCost prints how many nanoseconds a system call takes that does next to nothing.
func playCost() {
	const n = 200_000
	start := cpuTime()
	for range n {
		unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
	}
	fmt.Println(float64(cpuTime()-start) / n)
}

// cpuTime is what this process has used, in nanoseconds: others may be at work as well.
func cpuTime() int64 {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// BenchmarkFilter says what the filter adds to each system call of a worker.
func BenchmarkFilter(b *testing.B) {
	measure := func(l *Link) float64 {
		command := []string{os.Args[0]}
		if l != nil {
			command = l.Launch(command)
		}
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), costRole+"=1")
		if l != nil {
			cmd.ExtraFiles = l.Files()
		}
		out, err := cmd.Output()
		fdtest.Check(b, err)
		ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		fdtest.Check(b, err)
		return ns
	}
	// The least of several rounds: others may be at work as well.
	with, without := math.Inf(1), math.Inf(1)
	for b.Loop() {
		l, err := Open(Config{})
		fdtest.Check(b, err)
		with = min(with, measure(l))
		l.Close()
		without = min(without, measure(nil))
	}
	b.ReportMetric(without, "ns/call-without")
	b.ReportMetric(with, "ns/call-with")
	b.ReportMetric(0, "ns/op")
}
