//go:build race

package storage

// raceDetector: this binary was built with -race.
const raceDetector = true
