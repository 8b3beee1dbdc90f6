// Package stdio has the types by which a client's streams reach a process in a
// container.
package stdio

import "io"

// Streams are the client's ends of an exec or attach session. A nil stream is not
// connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY connects both outputs to Stdout, and the terminal's size to Resize.
	TTY bool
	// Resize delivers the sizes of the client's terminal, and is closed when no
	// more will come.
	Resize <-chan TerminalSize
	// Paced has the container wait for an attached client that does not read, as a program
	// waits for who reads its pipe. Others are let go when they are too far behind, where
	// the container's monitor can do that.
	Paced bool
	// Attached, if set, is called once when an attach is connected: what the
	// container writes from then on reaches the client.
	Attached func()
	// Begun, if set, is called once when the command of an exec is executed, unless it has
	// ended by then.
	Begun func()
}

// TerminalSize is the size of a terminal in character cells.
type TerminalSize struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}
