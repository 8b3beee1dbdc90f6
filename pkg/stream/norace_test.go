//go:build !race

package stream

// slowdown is how much longer the race detector may make what a test bounds.
const slowdown = 1
