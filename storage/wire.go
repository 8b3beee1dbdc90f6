package storage

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// contentJob is what the server asks of a content process: its first message.
type contentJob struct {
	Options  Options
	Driver   string
	Fuse     string // path of fuse-overlayfs
	LogLevel slog.Level
	Tmp      string // directory of the transfer

	Pull string // full name of an image, or
	Load string // a source of Load, or

	Save   []string // names or IDs of images, for an archive
	Format string   // of that

	// Platform is what is pulled of an index.
	Platform Platform

	// Anew has an image pulled also where it is there.
	Anew bool

	// Route is the way to the proxy of a pull, which has the credentials.
	Route fetch.Route
}

// contentMessage is what a content process tells the server. One of its fields is set.
type contentMessage struct {
	// Hold asks the server to hold a layer, or an image that is made (imageKey), and
	// Dirty to note that an image is being written. Both wait for an answer.
	Hold  string `json:",omitempty"`
	Dirty bool   `json:",omitempty"`

	// Alive says that the process is there; it is sent at intervals (beat).
	Alive bool `json:",omitempty"`

	// Lend asks the server for the file in which it has a blob, or downloads it; lentBlob is
	// what comes of that.
	Lend *lendRequest `json:",omitempty"`

	Progress *Progress      `json:",omitempty"`
	Log      *contentLog    `json:",omitempty"`
	Result   *contentResult `json:",omitempty"` // the last message
}

type contentLog struct {
	At      time.Time
	Level   slog.Level
	Message string
	Attrs   [][2]string
}

type contentResult struct {
	Images []string       // IDs
	Err    *contentFailed `json:",omitempty"`
}

// contentAnswer is the server's answer to Hold and Dirty; or, with Lent, to Lend; or, with
// Moved, word that the proxy goes on.
type contentAnswer struct {
	Moved bool           `json:",omitempty"`
	Lent  *lendAnswer    `json:",omitempty"`
	Err   *contentFailed `json:",omitempty"`
}

// contentFailed is an error that has crossed the border between the processes: its text,
// and its sentinel by name.
type contentFailed struct {
	Text     string
	Sentinel string `json:",omitempty"`
}

// sentinels are the errors that keep their class on the other side.
var sentinels = map[string]error{
	"reference": ErrBadReference, "not found": ErrImageNotFound, "unauthorized": ErrUnauthorized,
	"unavailable": ErrRegistryUnavailable, "signature": ErrSignature, "corrupt": ErrCorrupt,
	"unsupported": ErrUnsupported, "id range": ErrIDRange, "no space": ErrNoSpace, "too large": ErrTooLarge,
	"not usable": ErrNotUsable, "configuration": ErrConfiguration,
}

// maxErrorText is how much of an error crosses the border: a registry may choose its
// text, and so may a layer.
const maxErrorText = 8 << 10

func newContentFailed(err error) *contentFailed {
	if err == nil {
		return nil
	}
	f := &contentFailed{Text: err.Error()}
	if len(f.Text) > maxErrorText {
		f.Text = strings.ToValidUTF8(f.Text[:maxErrorText], "") + "…"
	}
	for _, class := range classes { // the first one, as on this side
		if !errors.Is(err, class) {
			continue
		}
		for name, s := range sentinels {
			if s == class {
				f.Sentinel = name
			}
		}
		break
	}
	return f
}

// unpack returns the error, nil for nil.
func (f *contentFailed) unpack() error {
	if f == nil {
		return nil
	}
	text := f.Text
	if len(text) > maxErrorText+len("…") { // it has cut it itself, unless it was taken over
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return &borderError{text, sentinels[f.Sentinel]}
}

// borderError is an error of another process.
type borderError struct {
	text     string
	sentinel error // nil for one of no class
}

// Error implements error.
func (e *borderError) Error() string { return e.text }

// Unwrap returns the sentinel.
func (e *borderError) Unwrap() error { return e.sentinel }

// wire carries messages: four bytes of length, then JSON. Sending is safe from several
// goroutines.
type wire struct {
	rw io.ReadWriter
	mu sync.Mutex
}

// Limits of one message, in bytes. A job holds the options, a content process's message
// at most an error and what is logged.
const (
	maxJobMessage     = 4 << 20
	maxContentMessage = 256 << 10
)

// maxMessage is the largest message that a content process may send: its result has an ID
// for each image of an archive.
func (l Limits) maxMessage() uint32 {
	const id = 2*sha256.Size + int64(len(`"",`))
	return uint32(min(maxContentMessage+id*l.Names, math.MaxUint32))
}

func (w *wire) send(v any) error {
	data, err := framedJSON(v)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.rw.Write(data)
	return err
}

// framedJSON returns a message as it goes over a wire.
func framedJSON(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))), data...), err
}

// receive reads one message of at most limit bytes into v. io.EOF at the end.
func (w *wire) receive(v any, limit uint32) error {
	var head [4]byte
	if _, err := io.ReadFull(w.rw, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > limit {
		return fmt.Errorf("a message of %d bytes, more than %d", n, limit)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(w.rw, data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
