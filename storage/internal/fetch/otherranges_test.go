package fetch

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/tests/registry"
)

// TestBrokenRanges: where a registry cuts a blob and does not go on with it as it was asked
// to, the whole blob is asked for again, once, whether it is the last one or a mirror.
func TestBrokenRanges(t *testing.T) {
	blob := noise(1<<20, 21)
	name := digest.FromBytes(blob).String()
	part := func(contentRange string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[:1000])
		}
	}
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code) }
	}
	for what, ranged := range map[string]func(http.ResponseWriter){
		"416": status(416), "400": status(400), "401": status(401), "403": status(403), "405": status(405), "no Content-Range": part(""), "another range": part("bytes 0-999/1048576"),
		"another unit": part("lines 1-2/3"),
	} {
		for _, mirror := range []bool{false, true} {
			for _, cut := range []int{1000, 512 << 10} {
				t.Run(fmt.Sprintf("%s, mirror %v, cut after %d", what, mirror, cut), func(t *testing.T) {
					var begun atomic.Bool
					f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
						switch {
						case !strings.Contains(r.URL.Path, name):
							return false
						case r.Header.Get("Range") != "":
							ranged(w)
							return true
						case begun.Swap(true):
							return false
						}
						w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
						w.Write(blob[:cut])
						w.(http.Flusher).Flush()
						panic(http.ErrAbortHandler)
					}}, blob)
					endpoints := []Endpoint{endpointOf(f)}
					if mirror {
						endpoints = append(endpoints, endpointOf(fake(t, registry.FakeOptions{})))
					}
					_, c := start(t, Config{Endpoints: endpoints})
					wantBlob(t, c, f.Addr, blob)
					if n := f.Requests("GET /v2/app/blobs/"); n != 3 {
						t.Errorf("the blob was asked for %d times, want 3", n)
					}
				})
			}
		}
	}
}

// TestOtherRanges: what a registry does not send of the parts that it was asked for is asked
// for again, and where it sends other ones, the library gets the whole blob.
func TestOtherRanges(t *testing.T) {
	blob := noise(1000, 22)
	name := "blobs/" + digest.FromBytes(blob).String()
	send := func(w http.ResponseWriter, first, last int, contentRange string) {
		w.Header().Set("Content-Type", "application/octet-stream")
		if contentRange != "" {
			w.Header().Set("Content-Range", fmt.Sprintf(contentRange, first, last, len(blob)))
		}
		w.WriteHeader(http.StatusPartialContent)
		w.Write(blob[first : last+1])
	}
	for _, c := range []struct {
		what, ranges string
		answer       func(http.ResponseWriter)
		want         []byte
	}{
		{"the first part alone", "bytes=5-9,20-29", func(w http.ResponseWriter) { send(w, 5, 9, "bytes %d-%d/%d") },
			append(slices.Clone(blob[5:10]), blob[20:30]...)},
		{"another part", "bytes=5-9", func(w http.ResponseWriter) { send(w, 100, 199, "bytes %d-%d/%d") }, blob},
		{"a part of no range", "bytes=5-9", func(w http.ResponseWriter) { send(w, 5, 9, "") }, blob},
	} {
		f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != c.ranges {
				return false
			}
			c.answer(w)
			return true
		}}, blob)
		_, client := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
		resp, body, err := get(t, client, f.Addr, name, "Range", c.ranges)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if got := joined(t, resp, body); !bytes.Equal(got, c.want) || len(got) == len(blob) != (resp.StatusCode == http.StatusOK) {
			t.Errorf("%s: %s, %d bytes, want %d", c.what, resp.Status, len(got), len(c.want))
		}
	}
}
