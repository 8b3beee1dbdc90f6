package state

import (
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"
)

// FuzzReadEntry reads what may be in a journal: anything at its end, and any text in an
// entry whose checksum is right. A whole entry is read with its length and, written
// again, is the same; a torn one is none.
func FuzzReadEntry(f *testing.F) {
	for _, e := range []entry{
		{Seq: 1, Bucket: "pods", Key: "a", Value: []byte(`{"id":"a"}`)}, {Seq: 1 << 63, Bucket: "containers", Key: "\u2028"},
	} {
		text, err := encodeEntry(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text[headerSize:], text)
		f.Add(text, text[:headerSize])
	}
	f.Add([]byte(`{"n":-1}`), []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add([]byte(`null`), []byte(nil))
	f.Fuzz(func(t *testing.T, body, tail []byte) {
		if n := readEntry(tail, &entry{}); n < 0 || n > len(tail) {
			t.Fatalf("an entry of %d bytes in %d", n, len(tail))
		}
		text := make([]byte, headerSize, headerSize+len(body)+len(tail))
		binary.BigEndian.PutUint32(text, uint32(len(body)))
		binary.BigEndian.PutUint32(text[4:], crc32.Checksum(body, castagnoli))
		text = append(text, body...)
		if len(body) > 0 && readEntry(text[:len(text)-1], &entry{}) == len(text) {
			t.Error("a torn entry was read")
		}
		var first, again entry
		n := readEntry(append(text, tail...), &first)
		if n == 0 {
			return
		}
		if n != len(text) {
			t.Fatalf("an entry of %d bytes was read with %d", len(text), n)
		}
		text, err := encodeEntry(first)
		if err != nil {
			t.Fatal(err)
		}
		if readEntry(text, &again) != len(text) || !reflect.DeepEqual(first, again) {
			t.Errorf("%+v was written and read as %+v", first, again)
		}
	})
}
