//go:build race

package pod

// injectEvery: with the race detector the lifecycle tests take several times as long, so
// they run all orders, but inject at every fifth step only.
const injectEvery = 5
