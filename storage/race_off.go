//go:build !race

package storage

// raceDetector: this binary was built without -race.
const raceDetector = false
