package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// program adds a dynamically linked program (or loadable module) of the sysroot
// to the layer at name, with the libraries it needs and its loader.
func (l *layer) program(sysroot, src, name string) {
	l.copy(name, 0o755, filepath.Join(sysroot, src))
	if l.err == nil {
		l.err = l.libraries(sysroot, filepath.Join(sysroot, src))
	}
}

func (l *layer) libraries(sysroot, file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: needed libraries: %w", file, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interp := make([]byte, p.Filesz)
		if _, err := p.ReadAt(interp, 0); err != nil {
			return fmt.Errorf("%s: interpreter: %w", file, err)
		}
		loader := strings.TrimRight(string(interp), "\x00")
		if l.dirs["file:"+loader] {
			continue
		}
		l.dirs["file:"+loader] = true
		src, err := find(sysroot, path.Base(loader))
		if err != nil {
			return err
		}
		l.copy(loader, 0o755, src)
	}
	for _, lib := range needed {
		target := "/usr/lib/" + lib
		if l.dirs["file:"+target] || strings.HasPrefix(lib, "ld-linux") {
			continue
		}
		l.dirs["file:"+target] = true
		src, err := find(sysroot, lib)
		if err != nil {
			return err
		}
		l.copy(target, 0o755, src)
		if err := l.libraries(sysroot, src); err != nil {
			return err
		}
	}
	return nil
}

// find returns the file of a library in the sysroot's library directories.
func find(sysroot, lib string) (string, error) {
	for _, pattern := range []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*", "lib64", "usr/lib64", "lib", "usr/lib"} {
		found, _ := filepath.Glob(filepath.Join(sysroot, pattern, lib))
		for _, file := range found {
			// Links in a sysroot may point to absolute paths outside it.
			if _, err := os.Stat(file); err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("library %s is not in %s: delete that directory and run fetch.sh again", lib, sysroot)
}
