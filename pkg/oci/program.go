package oci

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	goruntime "runtime"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// program is what a container's init is going to execute. The zero value is not known.
type program struct {
	Name string `json:"name"`           // the first argument
	Dir  string `json:"dir,omitempty"`  // the working directory
	Path string `json:"path,omitempty"` // $PATH
}

// initProgram returns the program of a container, unless a hook that runs in between
// could change what is executed.
func initProgram(spec *specs.Spec) program {
	if h := spec.Hooks; h != nil && len(h.StartContainer) > 0 {
		return program{}
	}
	return programOf(spec.Process)
}

func programOf(process *specs.Process) program {
	if len(process.Args) == 0 {
		return program{}
	}
	p := program{Name: process.Args[0], Dir: process.Cwd}
	for _, v := range process.Env {
		if list, ok := strings.CutPrefix(v, "PATH="); ok {
			p.Path = list
		}
	}
	return p
}

// ProgramPaths returns the paths at which the OCI runtimes look for a program, in order:
// the first argument of a process with this working directory and $PATH.
func ProgramPaths(name, dir, list string) []string {
	switch {
	case path.IsAbs(name):
		return []string{name}
	case strings.Contains(name, "/"):
		return []string{path.Join(dir, name)}
	}
	var out []string
	for d := range strings.SplitSeq(list, ":") {
		out = append(out, path.Join("/", d, name))
	}
	return out
}

const (
	// headSize is how much of a file the kernel looks at to tell what it is
	// (BINPRM_BUF_SIZE).
	headSize = 256
	// maxInterpreters is how many scripts may interpret each other, as with the kernel.
	maxInterpreters = 5
)

// checkProgram returns ErrCommandNotExecutable or ErrCommandNotFound when the kernel would
// certainly refuse to execute a program in the container. An OCI runtime looks for the
// permission only, and init then ends with the runtime's exit code and its message in the
// container's log, as if the program itself had written that. What is not certain is left
// to the kernel: a foreign binary may have an interpreter by binfmt_misc. What the error will
// be if it has none is returned as doubt.
//
// The container may have mounted a file system there that never answers: what cannot be
// seen soon is left to the kernel, too, which ends the wait with the process that waits.
func (c Container) checkProgram(ctx context.Context, p program) (doubt, err error) {
	if p.Name == "" {
		return nil, nil
	}
	select {
	case looks <- struct{}{}:
	default:
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() { <-looks }()
		done <- c.lookAt(p)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, nil
	}
	if d := (*doubtful)(nil); errors.As(err, &d) {
		return d.error, nil
	}
	return nil, err
}

// doubtful is an error of a program that the kernel may execute all the same.
type doubtful struct{ error }

// Unwrap returns the error that has the class.
func (d *doubtful) Unwrap() error { return d.error }

// unknown doubts a program that only an interpreter by binfmt_misc could run.
func unknown(name, what string) error {
	return &doubtful{fmt.Errorf("%w: %s: exec format error: %s", ErrCommandNotExecutable, name, what)}
}

// lookTimeout bounds the wait for a look at a program.
const lookTimeout = time.Second

// looks bounds how many threads can wait for file systems that never answer.
var looks = make(chan struct{}, 64)

// lookAt is checkProgram without a bound.
func (c Container) lookAt(p program) error {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", c.Init.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(root)
	if !isRoot(root, c.Rootfs) {
		return nil // init has changed its root directory, and what joins the container has not
	}
	v := view{root: root, dir: p.Dir}
	for _, name := range ProgramPaths(p.Name, p.Dir, p.Path) {
		if fd, ok := v.open(name); ok {
			defer unix.Close(fd)
			return v.check(name, fd, 0)
		}
	}
	return nil
}

// isRoot reports whether a container's root directory is that of its root file system.
func isRoot(root int, rootfs string) bool {
	var have, want unix.Stat_t
	return unix.Fstat(root, &have) == nil && unix.Stat(rootfs, &want) == nil && have.Dev == want.Dev && have.Ino == want.Ino
}

// view is a container's file system, and a working directory in it.
type view struct {
	root int
	dir  string
}

// look finds a file; what has gone wrong with one that cannot be looked at is not known.
func (v view) look(name string) (fd int, mode uint32, missing bool) {
	if !path.IsAbs(name) {
		name = path.Join(v.dir, name)
	}
	fd, err := openat2.InRoot(v.root, name, unix.O_PATH)
	if err != nil {
		return -1, 0, (err == unix.ENOENT || err == unix.ENOTDIR) && !dependent(name)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, false
	}
	return fd, st.Mode, false
}

// dependent reports whether a path can lead each process to another file: /proc/self and
// what leads there.
func dependent(name string) bool {
	name = path.Clean(name) + "/"
	return strings.HasPrefix(name, "/proc/") || strings.HasPrefix(name, "/dev/")
}

// open opens a regular file that somebody may execute.
func (v view) open(name string) (int, bool) {
	fd, mode, _ := v.look(name)
	if fd < 0 {
		return -1, false
	}
	defer unix.Close(fd)
	if mode&unix.S_IFMT != unix.S_IFREG || mode&0o111 == 0 {
		return -1, false
	}
	out, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	return out, err == nil
}

func (v view) check(name string, fd, depth int) error {
	head := make([]byte, headSize)
	n, err := unix.Pread(fd, head, 0)
	if err != nil {
		return nil
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		return v.checkScript(name, head[2:], depth)
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return v.checkELF(name, fd, head)
	case isText(head):
		return fmt.Errorf(`%w: %s: exec format error: the file is neither a program nor a script that begins with "#!"`, ErrCommandNotExecutable, name)
	}
	return unknown(name, "it is no program for this machine")
}

// isText reports whether a file cannot be meant for an interpreter by binfmt_misc.
func isText(head []byte) bool {
	if len(head) == headSize { // it may end within a character
		head = head[:len(head)-utf8.UTFMax]
	}
	return utf8.Valid(head) && !bytes.ContainsFunc(head, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) })
}

// checkScript reads the line after "#!" as the kernel does (fs/binfmt_script.c).
func (v view) checkScript(name string, line []byte, depth int) error {
	line, _, whole := bytes.Cut(line, []byte("\n"))
	line = bytes.TrimLeft(line, " \t")
	end := bytes.IndexAny(line, " \t\x00")
	switch {
	case end >= 0:
		line = line[:end]
	case !whole && len(line) > 0: // a file without a line end, or longer than what the kernel reads
		return unknown(name, `its first line "#!" is too long`)
	}
	interpreter := string(line)
	if interpreter == "" {
		return fmt.Errorf(`%w: %s: exec format error: its first line "#!" names no interpreter`, ErrCommandNotExecutable, name)
	}
	return v.checkInterpreter(name, interpreter, depth+1)
}

func (v view) checkInterpreter(name, interpreter string, depth int) error {
	fd, mode, missing := v.look(interpreter)
	if missing {
		hint := ""
		if strings.HasSuffix(interpreter, "\r") {
			hint = "; the file has the line ends of Windows: save it with those of Unix"
		}
		return fmt.Errorf("%w: %s: its interpreter %.200q does not exist%s", ErrCommandNotFound, name, interpreter, hint)
	}
	if fd < 0 {
		return nil
	}
	defer unix.Close(fd)
	if mode&unix.S_IFMT != unix.S_IFREG || mode&0o111 == 0 {
		return fmt.Errorf("%w: %s: permission denied: its interpreter %.200q is not an executable file", ErrCommandNotExecutable, name, interpreter)
	}
	if depth >= maxInterpreters {
		return unknown(name, "too many scripts interpret each other")
	}
	file, ok := v.open(interpreter)
	if !ok {
		return nil
	}
	defer unix.Close(file)
	return v.check(interpreter, file, depth)
}

// machines are the e_machine numbers of the programs that a kernel for GOARCH can run
// (elf(5)), architectures those that images are made for.
var (
	machines      = map[string][]uint16{"amd64": {62, 3}, "arm64": {183, 40}}
	architectures = map[uint16]string{3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}
)

// checkELF looks for the loader of a program of this machine.
func (v view) checkELF(name string, fd int, head []byte) error {
	if len(head) < 64 {
		return unknown(name, "the program is cut off")
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if head[5] == 2 {
		order = binary.BigEndian
	}
	if machine := order.Uint16(head[18:]); head[5] != 1 || !slices.Contains(machines[goruntime.GOARCH], machine) {
		what := architectures[machine]
		if what == "" {
			what = fmt.Sprintf("machine %d of elf(5)", machine)
		}
		return unknown(name, fmt.Sprintf("the program is for %s, this machine is %s", what, goruntime.GOARCH))
	}
	return v.checkLoader(name, fd, head)
}

// checkLoader looks for the loader that a program names.
func (v view) checkLoader(name string, fd int, head []byte) error {
	le := binary.LittleEndian
	var table uint64
	var size, count uint16
	var offsetAt, lengthAt int
	switch head[4] {
	case 1:
		table, size, count, offsetAt, lengthAt = uint64(le.Uint32(head[28:])), le.Uint16(head[42:]), le.Uint16(head[44:]), 4, 16
	case 2:
		table, size, count, offsetAt, lengthAt = le.Uint64(head[32:]), le.Uint16(head[54:]), le.Uint16(head[56:]), 8, 32
	}
	if size < 32 || size > 64 || count > 128 || table > 1<<40 {
		return nil
	}
	headers := make([]byte, int(size)*int(count))
	if n, err := unix.Pread(fd, headers, int64(table)); err != nil || n < len(headers) {
		return nil
	}
	const interp = 3 // PT_INTERP
	for h := range slices.Chunk(headers, int(size)) {
		if le.Uint32(h) != interp || lengthAt+4 > len(h) {
			continue
		}
		length, offset := le.Uint32(h[lengthAt:]), uint64(le.Uint32(h[offsetAt:]))
		if length < 2 || length > unix.PathMax {
			return nil
		}
		loader := make([]byte, length)
		if n, err := unix.Pread(fd, loader, int64(offset)); err != nil || n < len(loader) || loader[len(loader)-1] != 0 {
			return nil
		}
		loader, _, _ = bytes.Cut(loader, []byte{0})
		file, _, missing := v.look(string(loader))
		if missing {
			return fmt.Errorf("%w: %s: its loader %.200q does not exist: the image has another C library than the program", ErrCommandNotFound, name, loader)
		}
		if file >= 0 {
			unix.Close(file)
		}
		return nil
	}
	return nil
}
