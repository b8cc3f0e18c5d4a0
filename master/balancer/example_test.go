package balancer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass"
	"github.com/handfast/handfast/master/balancer"
)

// greeter is a worker within the balancer's process.
type greeter string

func (g greeter) Deliver(conns []fdpass.Handoff) (int, error) {
	for _, c := range conns {
		unix.Write(c.FD, []byte(g))
		unix.Close(c.FD)
	}
	return len(conns), nil
}

// The manager of workers fills a table of slots, and a balancer serves a listener with it.
func Example() {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer stop()
		client, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			panic(err)
		}
		defer client.Close()
		answer, err := io.ReadAll(client)
		fmt.Printf("%s %v\n", answer, err)
	}()
	worker := greeter("hello")

	table := balancer.NewTable(4)
	b, err := balancer.New(balancer.DefaultConfig(), table)
	if err != nil {
		panic(err)
	}
	table.Fill(0, worker)
	for slot := 1; slot < table.Len(); slot++ {
		table.Fill(slot, worker)
	}
	err = b.Serve(ctx, listener)
	fmt.Println(err)

	// Output:
	// hello <nil>
	// <nil>
}

// TestReadmeExample: master/README.md shows what Example does, so that it compiles.
func TestReadmeExample(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(readme), "\ntable := balancer.NewTable(")
	block, _, closed := strings.Cut("table := balancer.NewTable("+block, "```")
	if !found || !closed {
		t.Fatal("master/README.md has no such example")
	}
	for line := range strings.Lines(block) {
		code, _, _ := strings.Cut(line, "//")
		if code = strings.TrimSpace(code); !strings.Contains(string(example), "\t"+code+"\n") {
			t.Errorf("Example has no line %q", code)
		}
	}
}
