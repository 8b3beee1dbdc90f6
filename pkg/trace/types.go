package trace

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// ID is the ID of a trace (W3C Trace Context).
type ID [16]byte

func newID() (id ID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(id)) {
		return fmt.Errorf("%q is no ID of a trace", text)
	}
	_, err := hex.Decode(id[:], text)
	return err
}

// SpanID is the ID of a request or a step. 0 is that of none.
type SpanID uint64

// newSpanID returns one after which those of all steps are none of them 0.
func newSpanID() SpanID { return SpanID(rand.Uint64N(math.MaxUint64-maxSteps) + 1) }

// String returns the ID in hexadecimal, as W3C Trace Context and OpenTelemetry write it.
func (id SpanID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText implements encoding.TextMarshaler.
func (id SpanID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *SpanID) UnmarshalText(text []byte) error {
	var b [8]byte
	if len(text) != hex.EncodedLen(len(b)) {
		return fmt.Errorf("%q is no ID of a span", text)
	}
	_, err := hex.Decode(b[:], text)
	*id = SpanID(binary.BigEndian.Uint64(b[:]))
	return err
}

// Remote is the span of a client by which a request was sent.
type Remote struct {
	TraceID ID
	SpanID  SpanID
}

// ParseRemote reads the header "traceparent" of W3C Trace Context. What is none is the zero
// Remote.
func ParseRemote(header string) (r Remote) {
	parts := strings.SplitN(header, "-", 5) // the fifth is of a later version
	if len(parts) < 4 || !isHex(parts[0], 2) || parts[0] == "ff" || parts[0] == "00" && len(parts) > 4 {
		return Remote{}
	}
	if !isHex(parts[1], 32) || !isHex(parts[2], 16) || !isHex(parts[3], 2) ||
		r.TraceID.UnmarshalText([]byte(parts[1])) != nil || r.SpanID.UnmarshalText([]byte(parts[2])) != nil {
		return Remote{}
	}
	if r.SpanID == 0 || r.TraceID == (ID{}) {
		return Remote{}
	}
	return r
}

// isHex reports whether s are n digits, of which the standard allows the small ones alone.
func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// Trace is a request that has ended.
type Trace struct {
	TraceID ID `json:"traceId"`
	// SpanID is that of the request; that of Steps[i] is SpanID + 1 + i. Parent is the
	// client's, 0 without one.
	SpanID SpanID `json:"spanId"`
	Parent SpanID `json:"parentSpanId,omitempty"`
	// Name of the gRPC method.
	Name  string        `json:"name"`
	Start time.Time     `json:"start"`
	Took  time.Duration `json:"took"`
	// Code is the gRPC code of the answer, Error its text.
	Code  string `json:"code"`
	Error string `json:"error,omitempty"`
	// Attributes are IDs and names of what the request is about.
	Attributes map[string]string `json:"attributes,omitempty"`
	Steps      []StepTime        `json:"steps,omitempty"`
	// Dropped counts the steps beyond the bound.
	Dropped int `json:"dropped,omitempty"`
}

// StepTime is a step of a request.
type StepTime struct {
	Name string `json:"name"`
	// Parent is the index of the step that it is part of, -1 for the request.
	Parent int           `json:"parent"`
	Start  time.Duration `json:"start"` // since the request's
	Took   time.Duration `json:"took"`
	Failed bool          `json:"failed,omitempty"`
	// Unended is a step that went on when its request was answered.
	Unended bool `json:"unended,omitempty"`
}

// Step returns the SpanID of a step.
func (t *Trace) Step(i int) SpanID {
	if i < 0 {
		return t.SpanID
	}
	return t.SpanID + 1 + SpanID(i)
}
