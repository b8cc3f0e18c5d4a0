package main

import (
	"fmt"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/worker"
)

// playTalks serves, and prints what happens.
func playTalks(args []string) int {
	if _, err := unix.IoctlGetTermios(2, unix.TCGETS); err == nil {
		fmt.Fprintln(os.Stderr, "talks, to a terminal")
	} else {
		fmt.Fprintln(os.Stderr, "talks")
	}
	if len(args) > 1 && exists(args[1]) {
		fmt.Fprintln(os.Stderr, "broken: no such thing")
		return 3
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(os.Stderr, "asked")
		answerWith(w, r)
	})
	http.HandleFunc("/ws", echo)
	if err := worker.Serve(new(http.Server)); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	fmt.Println("bye")
	return 0
}
