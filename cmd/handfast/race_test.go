//go:build race

package main

// raceEnabled tells whether tests have the race detector.
const raceEnabled = true
