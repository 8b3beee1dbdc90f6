package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// meaningful is how many bytes count as progress.
const meaningful = 64 << 10

// restTime is how long what an answer has beside what is wanted may take: the text of an
// error, or the rest of a body whose connection is to be used again.
const restTime = 2 * time.Second

// patientBody is the body of an answer that ends with errSilent when next to nothing
// comes: whoever drips a manifest, a token or the text of an error is silent too.
type patientBody struct {
	io.ReadCloser
	stop  context.CancelCauseFunc // ends the request
	moved func()                  // called when enough has come
	limit time.Duration

	recent int64         // bytes since idle was 0
	idle   time.Duration // time spent waiting for them
}

// Read reads from the connection, and gives it up when next to nothing comes.
func (b *patientBody) Read(buf []byte) (int, error) {
	enough := max(1, int64(meaningful*b.limit/time.Minute))
	timer := time.AfterFunc(b.limit-b.idle, func() { b.stop(errSilent) })
	began := time.Now()
	n, err := b.ReadCloser.Read(buf)
	silent := !timer.Stop()
	b.idle += time.Since(began)
	if b.recent += int64(n); b.recent >= enough {
		b.recent, b.idle = 0, 0
		b.moved()
	} else if err == nil && b.idle >= b.limit || err != nil && !errors.Is(err, io.EOF) && silent {
		err = fmt.Errorf("%w: %w", ErrUnavailable, errSilent)
	}
	return n, err
}

// Close ends the request.
func (b *patientBody) Close() error {
	err := b.ReadCloser.Close()
	b.stop(nil)
	return err
}

// hurry has the rest of an answer end soon.
func hurry(resp *http.Response) {
	if b, ok := resp.Body.(*patientBody); ok {
		b.limit = min(b.limit, b.idle+restTime)
	}
}
