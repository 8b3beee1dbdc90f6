package state

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
)

// journal is a file of changes in the order in which they were acknowledged. Each
// is appended by one system call, which outlives the process; a power cut may take
// the last ones. The committer alone shortens the file: see journal.cut.
//
// An entry is its length and the CRC-32C of its text, four bytes each in big
// endian, and then its text, the JSON of an entry. A torn entry at the end was never
// acknowledged.
type journal struct {
	path string
	opts *options
	file *os.File // replaced by cut
	size int64    // bytes of acknowledged entries
	// dirty means that the file may be longer than size: what follows must be
	// removed before the next entry is written, as it could be taken for entries.
	dirty bool
	// given is the size up to which the file has the space of the reserve, with half of it
	// to spare; 0 is none.
	given int64
}

// entry is one change in the journal. A nil Value deletes the row. Entries are
// numbered in the order in which they were written.
type entry struct {
	Seq    uint64          `json:"n"`
	Bucket string          `json:"b"`
	Key    string          `json:"k"`
	Value  json.RawMessage `json:"v,omitempty"`
}

const headerSize = 8 // length and checksum

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openJournal opens or makes the file and passes its entries to each, in order.
// It changes nothing in the file and needs no space for one that exists. Returns
// the number of bytes at its end that are no entry.
func openJournal(path string, opts *options, each func(entry)) (j *journal, torn int64, err error) {
	j = &journal{path: path, opts: opts}
	// A kill during a cut may have left it; what it holds is in the journal, too.
	_ = os.Remove(j.tailPath())
	err = opts.do(stepOpen, func() (err error) {
		j.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	var text []byte
	err = opts.do(stepReplay, func() (err error) {
		text, err = io.ReadAll(j.file)
		return err
	})
	if err != nil {
		return nil, 0, errors.Join(err, j.file.Close())
	}
	for {
		var e entry
		n := readEntry(text[j.size:], &e)
		if n == 0 {
			break
		}
		j.size += int64(n)
		each(e)
	}
	torn = int64(len(text)) - j.size
	j.dirty = torn > 0
	return j, torn, nil
}

// readEntry decodes the first entry of text and returns its length, 0 when there is
// no whole one.
func readEntry(text []byte, e *entry) int {
	if len(text) < headerSize {
		return 0
	}
	size, sum := binary.BigEndian.Uint32(text), binary.BigEndian.Uint32(text[4:])
	if uint64(len(text)-headerSize) < uint64(size) {
		return 0
	}
	body := text[headerSize : headerSize+int(size)]
	if crc32.Checksum(body, castagnoli) != sum || json.Unmarshal(body, e) != nil {
		return 0
	}
	return headerSize + int(size)
}

// encodeEntry writes what json.Marshal would, without parsing the value, which is
// most of it, once more.
func encodeEntry(e entry) ([]byte, error) {
	bucket, err1 := json.Marshal(e.Bucket)
	key, err2 := json.Marshal(e.Key)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	text := make([]byte, headerSize, headerSize+len(e.Value)+len(bucket)+len(key)+64)
	text = append(text, `{"n":`...)
	text = strconv.AppendUint(text, e.Seq, 10)
	text = append(append(text, `,"b":`...), bucket...)
	text = append(append(text, `,"k":`...), key...)
	if e.Value != nil {
		text = append(append(text, `,"v":`...), e.Value...)
	}
	text = append(text, '}')
	binary.BigEndian.PutUint32(text, uint32(len(text)-headerSize))
	binary.BigEndian.PutUint32(text[4:], crc32.Checksum(text[headerSize:], castagnoli))
	return text, nil
}

// append writes an entry behind the others. On an error it is not in the journal,
// unless the error says that it may be.
func (j *journal) append(e entry) error {
	text, err := encodeEntry(e)
	if err != nil {
		return err
	}
	if j.dirty {
		if err := j.trim(); err != nil {
			return err
		}
	}
	err = j.opts.do(stepAppend, func() error {
		_, err := j.file.WriteAt(text, j.size)
		return err
	})
	if err != nil {
		j.dirty = true
		if undo := j.trim(); undo != nil {
			return fmt.Errorf("%w; it cannot be taken back (%w): it may take effect when the server is started again", err, undo)
		}
		return err
	}
	j.size += int64(len(text))
	return nil
}

// trim removes what is behind the last acknowledged entry.
func (j *journal) trim() error {
	if err := j.opts.do(stepTrim, func() error { return j.file.Truncate(j.size) }); err != nil {
		return err
	}
	j.dirty, j.given = false, 0
	return nil
}

// clear removes all entries. It needs no space on the disk.
func (j *journal) clear() error {
	err := j.opts.do(stepClear, func() error { return j.file.Truncate(0) })
	if err != nil {
		// An entry behind bytes that are gone would be lost.
		if fi, statErr := j.file.Stat(); statErr != nil || fi.Size() != 0 {
			return err
		}
	}
	j.size, j.dirty, j.given = 0, false, 0
	return nil
}

func (j *journal) tailPath() string { return j.path + ".tail" }

// tail makes a file with the bytes from..to of the journal, which are not appended
// to meanwhile. The journal stays what it is until the file replaces it.
func (j *journal) tail(from, to int64) (f *os.File, err error) {
	err = j.opts.do(stepTail, func() (err error) {
		if f, err = os.OpenFile(j.tailPath(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return err
		}
		return j.copyTo(f, from, to)
	})
	if err != nil && f != nil {
		err = errors.Join(err, j.dropTail(f))
	}
	return f, err
}

func (j *journal) copyTo(f *os.File, from, to int64) error {
	_, err := io.Copy(f, io.NewSectionReader(j.file, from, to-from))
	return err
}

// isAt reports whether the path leads to f: a network file system may report an
// error for a rename that was done.
func isAt(path string, f *os.File) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	fi, err := f.Stat()
	return err == nil && os.SameFile(at, fi)
}

func (j *journal) dropTail(f *os.File) error {
	return errors.Join(f.Close(), os.Remove(j.tailPath()))
}

// replace completes a tail that begins at from and ends at to, and puts it in the
// journal's place: one rename, so that a kill leaves the one or the other. Returns
// the file that was the journal, for the caller to close.
func (j *journal) replace(tail *os.File, from, to int64) (old *os.File, err error) {
	err = j.opts.do(stepRename, func() error {
		if err := j.copyTo(tail, to, j.size); err != nil {
			return err
		}
		return os.Rename(j.tailPath(), j.path)
	})
	if err != nil && !isAt(j.path, tail) {
		return nil, errors.Join(err, j.dropTail(tail))
	}
	old = j.file
	j.file, j.size, j.dirty, j.given = tail, j.size-from, false, 0
	return old, nil
}
