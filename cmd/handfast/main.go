// Command handfast runs a server as several workers and hands each TCP connection
// to the worker that its client belongs to.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}
