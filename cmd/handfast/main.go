// Command handfast runs a server as several workers and hands each TCP connection
// to the worker that its client belongs to.
package main

import (
	"context"
	"os"

	"github.com/handfast/handfast/master/link/launch"
)

func main() {
	launch.Main() // if this process is to become a worker
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}
