package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// made is the time stamp of everything: the same sources give the same digests.
var made = time.Unix(1700000000, 0).UTC()

// layer collects the files of one image layer. Errors are kept until blob.
type layer struct {
	raw  bytes.Buffer
	tw   *tar.Writer
	dirs map[string]bool
	err  error
}

func newLayer() *layer {
	l := &layer{dirs: map[string]bool{"": true, ".": true, "/": true}}
	l.tw = tar.NewWriter(&l.raw)
	return l
}

func (l *layer) put(h tar.Header, content []byte) {
	if l.err != nil {
		return
	}
	h.Name = strings.TrimPrefix(h.Name, "/")
	h.Size = int64(len(content))
	h.ModTime = made
	if err := l.tw.WriteHeader(&h); err != nil {
		l.err = fmt.Errorf("layer entry %s: %w", h.Name, err)
		return
	}
	if _, err := l.tw.Write(content); err != nil {
		l.err = fmt.Errorf("layer entry %s: %w", h.Name, err)
	}
}

// dir adds a directory and those above it, which get mode 0755.
func (l *layer) dir(name string, mode int64) {
	name = strings.Trim(name, "/")
	if l.dirs[name] {
		return
	}
	l.dir(path.Dir(name), 0o755)
	l.dirs[name] = true
	l.put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (l *layer) file(name string, mode int64, content []byte) {
	l.dir(path.Dir(name), 0o755)
	l.put(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

// copy adds the file src of this machine.
func (l *layer) copy(name string, mode int64, src string) {
	content, err := os.ReadFile(src)
	if err != nil && l.err == nil {
		l.err = err
	}
	l.file(name, mode, content)
}

// hardlink adds another name of a file that is in the layer already.
func (l *layer) hardlink(name, target string) {
	l.dir(path.Dir(name), 0o755)
	l.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: strings.TrimPrefix(target, "/"), Mode: 0o755}, nil)
}

func (l *layer) symlink(name, target string) {
	l.dir(path.Dir(name), 0o755)
	l.put(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// blob returns the layer as a tar archive and compressed by gzip.
func (l *layer) blob() (plain, compressed []byte, err error) {
	if l.err != nil {
		return nil, nil, l.err
	}
	if err := l.tw.Flush(); err != nil {
		return nil, nil, err
	}
	// A layer may be part of several images: end the archive in a copy.
	plain = append(bytes.Clone(l.raw.Bytes()), make([]byte, 1024)...)
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	if _, err := io.Copy(zw, bytes.NewReader(plain)); err != nil {
		return nil, nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, nil, err
	}
	return plain, z.Bytes(), nil
}
