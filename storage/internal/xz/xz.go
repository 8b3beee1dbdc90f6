// Package xz takes the place of github.com/ulikunitz/xz for containers/image and
// containers/storage (see the replace directive in the main module's go.mod).
//
// The original allocates whatever dictionary a stream asks for: a layer of 152 bytes
// makes it allocate 4 GiB. Each block of each stream in a file may ask anew, and where
// blocks begin is known only by decoding, so the bound has to be in the decoder. The
// one used here has it.
package xz

import (
	"errors"
	"fmt"
	"io"

	"github.com/therootcompany/xz"
)

// MaxDictionary is the largest dictionary, in bytes, that a stream may ask for: what
// "xz -9" uses.
const MaxDictionary = 64 << 20

// ErrDictionary says that a stream needs a larger dictionary than MaxDictionary.
var ErrDictionary = errors.New("xz dictionary is too large")

// NewReader returns a reader of the data that is compressed in r. r may hold several
// streams.
func NewReader(r io.Reader) (io.Reader, error) {
	x, err := xz.NewReader(r, MaxDictionary)
	if err != nil {
		return nil, explain(err)
	}
	return reader{x}, nil
}

type reader struct{ *xz.Reader }

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	return n, explain(err)
}

func explain(err error) error {
	if errors.Is(err, xz.ErrMemlimit) {
		return fmt.Errorf("%w: more than the %d MiB of xz -9: compress it with a smaller one", ErrDictionary, MaxDictionary>>20)
	}
	return err
}

// NewWriter returns an error: nothing here compresses with xz.
func NewWriter(io.Writer) (io.WriteCloser, error) {
	return nil, errors.New("compressing with xz is not supported")
}
