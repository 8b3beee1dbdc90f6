//go:build !race

package pod

// injectEvery: the lifecycle tests inject failures and kills at each step.
const injectEvery = 1
