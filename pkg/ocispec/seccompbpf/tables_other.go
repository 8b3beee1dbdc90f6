//go:build !amd64 && !arm64

package seccompbpf

// nativeFamily is empty where no table is built in: Compile then answers
// ErrUnsupported and the OCI runtime compiles the profile itself.
func nativeFamily() family { return family{} }
