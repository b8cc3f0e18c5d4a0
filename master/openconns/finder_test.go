package openconns

import (
	"testing"
	"time"

	"github.com/handfast/handfast/master/sockdiag"
)

// TestWhatIsBusy: when a connection is more than kept alive, as far as the kernel's numbers tell.
func TestWhatIsBusy(t *testing.T) {
	const long, longer = 2 * still, 3 * still
	for name, tt := range map[string]struct {
		traffic sockdiag.Traffic
		want    bool
	}{
		"bytes wait to be read":              {sockdiag.Traffic{Unread: 1, Received: 1, SinceReceived: longer, SinceSent: long}, true},
		"bytes wait to be taken":             {sockdiag.Traffic{Unsent: 1, Received: 1, SinceReceived: longer, SinceSent: long}, true},
		"something has just come":            {sockdiag.Traffic{Received: 1, Acked: 1, SinceReceived: still - 1, SinceSent: long}, true},
		"something has just gone":            {sockdiag.Traffic{Received: 1, Acked: 1, SinceReceived: long, SinceSent: still - 1}, true},
		"answered":                           {sockdiag.Traffic{Received: 1, Acked: 1, SinceReceived: longer, SinceSent: long}, false},
		"answered at the same moment":        {sockdiag.Traffic{Received: 1, Acked: 1, SinceReceived: long, SinceSent: long}, false},
		"not answered":                       {sockdiag.Traffic{Received: 2, Acked: 1, SinceReceived: long, SinceSent: longer}, true},
		"a first request that has no answer": {sockdiag.Traffic{Received: 1, SinceReceived: long, SinceSent: long}, true},
		"nothing has ever come":              {sockdiag.Traffic{SinceReceived: long, SinceSent: long}, false},
		"nothing but a greeting has gone":    {sockdiag.Traffic{Acked: 1, SinceReceived: long, SinceSent: longer}, false},
		"nobody tells":                       {sockdiag.Traffic{}, true},
	} {
		if got := busy(&sockdiag.Socket{Traffic: tt.traffic}); got != tt.want {
			t.Errorf("%s: busy is %v", name, got)
		}
	}
}

// TestSharedAnswer: many who ask at about the same time ask the kernel once.
func TestSharedAnswer(t *testing.T) {
	asked := 0
	f := New(func() []uint16 { asked++; return nil })
	f.asked = time.Now().Add(time.Hour) // as if just now, for all of this test
	for range 10 {
		if _, err := f.Open(1); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 0 {
		t.Errorf("asked %d times", asked)
	}
	f.asked = time.Now().Add(-time.Hour)
	if _, err := f.Open(1); err != nil || asked != 1 {
		t.Errorf("asked %d times (%v), want once", asked, err)
	}
}
