package oci

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// elf is the head of a program of machine with the given loader.
func elf(machine uint16, loader string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64+56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	le.PutUint32(b[64:], 3)
	le.PutUint64(b[64+8:], uint64(len(b)))
	le.PutUint64(b[64+32:], uint64(len(loader)+1))
	return append(append(b, loader...), 0)
}

// TestProgramsThatCannotRun: what the kernel refuses to execute has not been started, by
// either runtime, and leaves no message of the runtime in the log where that can be seen
// beforehand.
func TestProgramsThatCannotRun(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		for name, c := range map[string]struct {
			content []byte
			want    error
			text    string
			seen    bool // only after init has tried
		}{
			"CRLF":            {[]byte("#!/bin/sh\r\necho hi\r\n"), ErrCommandNotFound, "line ends of Windows", false},
			"no interpreter":  {[]byte("#!/no/such -x\n"), ErrCommandNotFound, `"/no/such" does not exist`, false},
			"a relative one":  {[]byte("#!sh\n"), ErrCommandNotFound, `"sh" does not exist`, false},
			"a directory":     {[]byte("#! /bin\n"), ErrCommandNotExecutable, "permission denied", false},
			"not executable":  {[]byte("#!/bin/notexec\n"), ErrCommandNotExecutable, "permission denied", false},
			"of a script":     {[]byte("#!/bin/bad-script\n"), ErrCommandNotFound, `"/nothing" does not exist`, false},
			"of nothing":      {[]byte("#! \t\necho\n"), ErrCommandNotExecutable, "names no interpreter", false},
			"no first line":   {[]byte("echo hi\n"), ErrCommandNotExecutable, "exec format error", false},
			"a BOM":           {[]byte("\ufeff#!/bin/sh\necho hi\n"), ErrCommandNotExecutable, "exec format error", false},
			"empty":           {nil, ErrCommandNotExecutable, "exec format error", false},
			"another libc":    {elf(machines["amd64"][0], "/lib/ld-of-another-libc.so.1"), ErrCommandNotFound, "another C library", false},
			"another machine": {elf(0x1234, "/lib/ld.so"), ErrCommandNotExecutable, "exec format error", true},
			"binary rubbish":  {[]byte("\x00\x01\x02\x03"), ErrCommandNotExecutable, "exec format error", true},
		} {
			t.Run(name, func(t *testing.T) {
				b := create(t, e, container{handler: handler, args: []string{"bad", "argument"}, change: func(s *specs.Spec) {
					s.Process.Env = append(s.Process.Env, "PATH=/nowhere:/bin")
					bin := filepath.Join(s.Root.Path, "bin")
					for file, content := range map[string][]byte{"bad": c.content, "bad-script": []byte("#!/nothing\n")} {
						if err := os.WriteFile(filepath.Join(bin, file), content, 0o755); err != nil {
							t.Fatal(err)
						}
					}
				}})
				err := b.Start(context.Background(), b.id, b.ctr)
				if !errors.Is(err, c.want) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.text)) {
					t.Errorf("%v, want %q with %q", err, c.want, c.text)
				}
				if log, _ := os.ReadFile(b.log); len(log) > 0 != c.seen {
					t.Errorf("the log has %q", log)
				}
			})
		}
	})
}

// TestProgramsThatCannotRunWithoutLog: where the runtime's message is seen by nobody else, a
// program that the kernel refused has not been started either; one that only looks so has.
func TestProgramsThatCannotRunWithoutLog(t *testing.T) {
	foreign := elf(183, "/lib/ld.so")
	if goruntime.GOARCH == "arm64" {
		foreign = elf(62, "/lib/ld.so")
	}
	bigEndian := elf(0, "/lib/ld.so")
	bigEndian[5], bigEndian[18], bigEndian[19] = 2, 0, 22
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		for name, c := range map[string]struct {
			content []byte
			text    string // "" for one that runs
		}{
			"another machine": {foreign, "this machine is " + goruntime.GOARCH},
			"big endian":      {bigEndian, "for s390x"},
			"cut off":         {foreign[:30], "cut off"},
			"binary rubbish":  {[]byte("\x00\x01\x02\x03"), "no program for this machine"},
			"a long line":     {[]byte("#!/" + strings.Repeat("x", 300) + "\n"), "too long"},
			"of itself":       {[]byte("#!/bin/bad\n"), "interpret each other"},
			"exits with 1":    {[]byte("#!/bin/sh\nexit 1\n"), ""},
		} {
			t.Run(name, func(t *testing.T) {
				b := create(t, e, container{handler: handler, args: []string{"/bin/bad"}, noLog: true, change: func(s *specs.Spec) {
					if err := os.WriteFile(filepath.Join(s.Root.Path, "bin", "bad"), c.content, 0o755); err != nil {
						t.Fatal(err)
					}
				}})
				err := b.Start(context.Background(), b.id, b.ctr)
				if c.text == "" && err != nil || c.text != "" && (!errors.Is(err, ErrCommandNotExecutable) || !strings.Contains(err.Error(), c.text)) {
					t.Errorf("%v, want it to say %q", err, c.text)
				}
			})
		}
	})
}

// TestCommandsThatAreNoFiles: what no path leads to is the command's fault.
func TestCommandsThatAreNoFiles(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		for name, command := range map[string]string{"below a file": "/bin/sh/", "a loop of links": "/loop", "a long name": "/" + strings.Repeat("n", 300)} {
			t.Run(name, func(t *testing.T) {
				b, err := tryCreate(t, e, container{handler: handler, args: []string{command}, change: func(s *specs.Spec) {
					if err := os.Symlink("loop", filepath.Join(s.Root.Path, "loop")); err != nil && !errors.Is(err, os.ErrExist) {
						t.Fatal(err)
					}
				}})
				if err == nil {
					defer b.Delete(context.Background(), b.id, b.ctr)
					err = b.Start(context.Background(), b.id, b.ctr)
				}
				if !errors.Is(err, ErrCommandNotExecutable) && !errors.Is(err, ErrCommandNotFound) {
					t.Errorf("%v, want one of the command", err)
				}
			})
		}
	})
}

// TestExecOfWhatCannotRun: an exec says the same of it. runc does not report what only the
// kernel finds out.
func TestExecOfWhatCannotRun(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler, change: func(s *specs.Spec) {
			for file, content := range map[string]string{"crlf": "#!/bin/sh\r\n", "text": "echo hi\n", "rubbish": "\x00\x01\x02"} {
				if err := os.WriteFile(filepath.Join(s.Root.Path, "bin", file), []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}}).start()
		for command, want := range map[string]error{
			"/bin/crlf": ErrCommandNotFound, "/bin/text": ErrCommandNotExecutable, "/bin/rubbish": ErrCommandNotExecutable,
			"/bin/notexec": ErrCommandNotExecutable, "/bin": ErrCommandNotExecutable, "/bin/missing": ErrCommandNotFound,
		} {
			if handler == "runc" && command == "/bin/rubbish" {
				continue
			}
			r, err := b.exec(0, command)
			if !errors.Is(err, want) {
				t.Errorf("%s: %v (code %d, stdout %q, stderr %q), want %q", command, err, r.ExitCode, r.Stdout, r.Stderr, want)
			}
		}
	})
}

// TestProgramsThatWriteLikeTheRuntime: what a program writes does not make it one that
// could not be executed.
func TestProgramsThatWriteLikeTheRuntime(t *testing.T) {
	eachMonitor(t, testProgramsThatWriteLikeTheRuntime)
}

func testProgramsThatWriteLikeTheRuntime(t *testing.T, e *Executor) {
	for _, script := range []string{
		`echo '{"msg":"something else","level":"error"}'; exit 1`,
		`echo first; echo '{"msg":"exec container process: Exec format error","level":"error"}'; exit 1`,
		`echo '{"msg":"exec container process: Exec format error","level":"error"}'; exit 3`,
	} {
		b := create(t, e, container{args: sh(script)})
		if err := b.Start(context.Background(), b.id, b.ctr); err != nil {
			t.Errorf("%s: %v", script, err)
		}
		if _, err := b.Wait(context.Background(), b.id, b.ctr); err != nil {
			t.Error(err)
		}
	}
}

// FuzzProgram: no file of an image makes the look at it fail in another way.
func FuzzProgram(f *testing.F) {
	f.Add([]byte("#!/bin/sh\n"))
	f.Add([]byte("#!x"))
	f.Add(elf(62, "/lib/ld.so"))
	f.Add(bytes.Repeat([]byte("é"), 200))
	dir := f.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	defer root.Close()
	f.Fuzz(func(t *testing.T, content []byte) {
		name := filepath.Join(dir, "x")
		if err := os.WriteFile(name, content, 0o755); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		err = view{root: int(root.Fd()), dir: "/"}.check("/x", int(file.Fd()), 0)
		if err != nil && !errors.Is(err, ErrCommandNotFound) && !errors.Is(err, ErrCommandNotExecutable) {
			t.Errorf("%v", err)
		}
	})
}

// TestProgramPaths: a program is looked for where the OCI runtime looks for it.
func TestProgramPaths(t *testing.T) {
	for program, want := range map[string][]string{
		"true": {"/bin/true", "/usr/bin/true"}, "/sbin/init": {"/sbin/init"}, "./run.sh": {"/app/run.sh"}, "../bin/run": {"/bin/run"},
	} {
		if got := ProgramPaths(program, "/app", "/bin:/usr/bin"); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", program, got, want)
		}
	}
}
