package logging

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Rate is how often a message is written: Burst times at once, and then once in Every.
type Rate struct {
	Burst int
	Every time.Duration
	By    string // a key, such as "slot", each of whose values has a rate of its own; empty: none
}

// Few is the rate of what a worker or a client can cause.
var Few = Rate{Burst: 5, Every: time.Second}

// maxBuckets bounds what is remembered. Messages are constant, so there are not many.
const maxBuckets = 4096

// Limit returns a logger that writes no message at level Info or above more often than the rate allows. How many were left out
// goes with the next one that is written, as left_out. What it is asked for (With, Named) shares its memory.
func Limit(log hclog.Logger, rate Rate) hclog.Logger {
	return limited{log, &limits{rate: rate, buckets: make(map[bucketKey]*bucket)}}
}

type limited struct {
	hclog.Logger
	limits *limits
}

type limits struct {
	rate    Rate
	mu      sync.Mutex
	buckets map[bucketKey]*bucket
}

type bucketKey struct {
	message string
	by      any
}

type bucket struct {
	tokens  int
	since   time.Time // there have been so many tokens
	leftOut int
}

// take tells whether a line may be written, and how many were left out before it.
func (l *limits) take(message string, args []any) (leftOut int, ok bool) {
	key := bucketKey{message: message}
	if i := slices.Index(args, any(l.rate.By)); l.rate.By != "" && i >= 0 && i+1 < len(args) {
		if number, isInt := args[i+1].(int); isInt { // what can be compared, at any rate
			key.by = number
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= maxBuckets {
			clear(l.buckets)
		}
		b = &bucket{tokens: l.rate.Burst, since: now}
		l.buckets[key] = b
	}
	if more := int(now.Sub(b.since) / l.rate.Every); b.tokens+more >= l.rate.Burst {
		b.tokens, b.since = l.rate.Burst, now
	} else {
		b.tokens += more
		b.since = b.since.Add(time.Duration(more) * l.rate.Every)
	}
	if b.tokens == 0 {
		b.leftOut++
		return 0, false
	}
	b.tokens--
	leftOut, b.leftOut = b.leftOut, 0
	return leftOut, true
}

func (l limited) Log(level hclog.Level, message string, args ...any) {
	if level < hclog.Info {
		l.Logger.Log(level, message, args...)
		return
	}
	if level < l.GetLevel() {
		return
	}
	leftOut, ok := l.limits.take(message, args)
	if !ok {
		return
	}
	if leftOut > 0 {
		args = append(slices.Clone(args), "left_out", leftOut)
	}
	l.Logger.Log(level, message, args...)
}

func (l limited) Info(message string, args ...any)  { l.Log(hclog.Info, message, args...) }
func (l limited) Warn(message string, args ...any)  { l.Log(hclog.Warn, message, args...) }
func (l limited) Error(message string, args ...any) { l.Log(hclog.Error, message, args...) }

func (l limited) With(args ...any) hclog.Logger { return limited{l.Logger.With(args...), l.limits} }
func (l limited) Named(name string) hclog.Logger {
	return limited{l.Logger.Named(name), l.limits}
}
func (l limited) ResetNamed(name string) hclog.Logger {
	return limited{l.Logger.ResetNamed(name), l.limits}
}
