package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/programs"
)

// TestChoose walks what --worker-link auto decides by.
// Rows C1 and C2.
func TestChoose(t *testing.T) {
	proxy, busy := errors.New("with --behind-proxy"), errors.New("EBUSY")
	const starts = "npm starts the program"
	app := []string{"node", "an app.js"}
	for _, test := range []struct {
		kind    programs.Kind
		instead []string
		mailbox bool
		route   error
		filter  error
		want    master.LinkKind
		says    string // in the reason, or in the error
		fails   bool
	}{
		{kind: programs.Node, want: master.LinkNode, says: starts},
		{kind: programs.Node, mailbox: true, route: proxy, filter: busy, want: master.LinkNode},
		{kind: programs.NodeStarter, want: master.LinkAny, says: "run node itself"},
		{kind: programs.NodeStarter, instead: app, route: proxy, fails: true, says: "behind-proxy; run node itself: -- node 'an app.js'"},
		{kind: programs.NodeStarter, route: proxy, fails: true, says: "run node itself (-- node SCRIPT), or say " + experimental},
		{kind: programs.NodeStarter, instead: app, filter: busy, fails: true, says: "EBUSY; run node itself: --"},
		{kind: programs.NodeTool, want: master.LinkAny},
		{kind: programs.NodeTool, route: proxy, want: master.LinkNode, says: "behind-proxy"},
		{kind: programs.NodeTool, filter: busy, want: master.LinkNode, says: "EBUSY"},
		{kind: programs.NodeNothing, fails: true, says: "name a script"},
		{mailbox: true, want: master.LinkNative, says: "HANDFAST_FD"},
		{mailbox: true, route: proxy, filter: busy, want: master.LinkNative, says: "HANDFAST_FD"},
		{want: master.LinkAny, says: "listens by itself"},
		{route: proxy, want: master.LinkNative, says: "behind-proxy"},
	} {
		f := facts{
			program: programs.Command{Kind: test.kind, Instead: test.instead, Why: starts},
			mailbox: func() bool { return test.mailbox },
			route:   test.route,
			filter:  func() error { return test.filter },
		}
		got, err := f.choose()
		says := got.why
		if err != nil {
			says = err.Error()
			if usage := (usageError{}); !errors.As(err, &usage) {
				t.Errorf("%+v: %v is no usage error", test, err)
			}
		}
		if got.link != test.want || (err != nil) != test.fails || !strings.Contains(says, test.says) {
			t.Errorf("%+v: %v, %v", test, got, err)
		}
	}
}
