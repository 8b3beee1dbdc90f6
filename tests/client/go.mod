// What the kubelet uses to talk to a runtime, built apart from subpod, so that
// its dependencies stay out of subpod's go.mod.
module github.com/subpod/subpod/tests/client

go 1.26.0

require k8s.io/cri-client v0.37.2 // indirect
