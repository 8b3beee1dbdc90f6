package api

import (
	"time"

	"github.com/subpod/subpod/pkg/trace"
)

// TraceRequest asks for traces of requests: the last ones, or the slowest of late, and with
// Follow those that end from then on.
type TraceRequest struct {
	Follow  bool `json:"follow,omitempty"`
	Slowest bool `json:"slowest,omitempty"`
	// Limit is how many of the past are sent.
	Limit int `json:"limit"`
	// Method is the name of a gRPC method, Match what an attribute or the trace's ID begins
	// with, Least what a request must have taken. The zero values are for all.
	Method string        `json:"method,omitempty"`
	Match  string        `json:"match,omitempty"`
	Least  time.Duration `json:"least,omitempty"`
}

// Trace is a request that has ended.
type Trace = trace.Trace

// LogLevelRequest sets the level of the server's log until another server starts; "" asks
// for it.
type LogLevelRequest struct {
	Level string `json:"level,omitempty"`
}

// LogLevelResponse has the level that holds.
type LogLevelResponse struct {
	Level string `json:"level"`
}
