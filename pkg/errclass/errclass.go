// Package errclass makes sentinel errors that belong to one of the classes of package
// errdefs. A mechanism classifies its own errors with it, so that package rpc maps
// classes to gRPC codes and need not know the mechanisms.
package errclass

// New returns a sentinel error: errors.Is finds it by itself and by class, one of those
// of package errdefs or ErrTimeout. Its text is text alone. Two calls never return the
// same error.
func New(class error, text string) error { return &sentinel{class, text} }

type sentinel struct {
	class error
	text  string
}

// Error implements error.
func (s *sentinel) Error() string { return s.text }

// Unwrap returns the class.
func (s *sentinel) Unwrap() error { return s.class }

// ErrTimeout is the class of what took too long and was ended, which package errdefs has
// no sentinel for. It is not context.DeadlineExceeded, which is the caller's own deadline.
var ErrTimeout error = timeout{}

type timeout struct{}

// Error implements error.
func (timeout) Error() string { return "timeout" }

// DeadlineExceeded lets errdefs.IsDeadlineExceeded find the class.
func (timeout) DeadlineExceeded() {}
