package tarcount

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzCounter: what archive/tar finds in a stream is counted. The inputs are scripts of
// streams: in bytes of a stream itself, nearly all zeros, a mutation seldom says
// anything, and to make one input smaller takes minutes.
func FuzzCounter(f *testing.F) {
	for name, stream := range hidingArchives() {
		script := archiveScript(stream)
		if again := scriptedArchive(script); !bytes.Equal(again, stream) {
			f.Fatalf("%s: the script of the stream gives another", name)
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		stream := scriptedArchive(script)
		if found, counted := entriesOf(t, stream); counted < found {
			t.Errorf("%d entries are counted of %d", counted, found)
		}
	})
}

// A script has for each block of a stream a byte with the number of pieces; a piece is
// half of its position, its length, and its bytes. All else of the block is zeros, and
// the checksum of a header.
const maxPieces = 16

// archiveScript returns the script of a stream whose headers have their checksums.
func archiveScript(stream []byte) (script []byte) {
	for block := range slices.Chunk(stream, blockSize) {
		bare := slices.Clone(block)
		if len(block) == blockSize && isHeader(block) {
			clear(bare[148:156])
		}
		count := len(script)
		script = append(script, 0)
		for at := 0; at < len(bare); at += 2 {
			end := at
			for end < len(bare) && !bytes.HasPrefix(bare[end:], []byte{0, 0}) && end-at < 255 {
				end++
			}
			if end == at || bytes.Count(bare[at:end], []byte{0}) == end-at {
				continue
			}
			script = append(append(script, byte(at/2), byte(end-at)), bare[at:end]...)
			script[count]++
			at = (end - 1) &^ 1
		}
	}
	return script
}

// scriptedArchive returns the stream of a script: any bytes are one.
func scriptedArchive(script []byte) (stream []byte) {
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	for len(script) > 0 {
		block := make([]byte, blockSize)
		for range next() % (maxPieces + 1) {
			at, n := int(next())*2, int(next())
			piece := script[:min(n, len(script))]
			script = script[len(piece):]
			copy(block[at:], piece)
		}
		fillChecksum(block)
		stream = append(stream, block...)
	}
	return stream
}
