package storage

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// lookedUp are the names that every container's creation looks up.
var lookedUp = []string{"etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf", "proc", "sys", "dev", "dev/shm", "dev/pts", "dev/mqueue", "run"}

// usualPath is where a program is looked for when the image says nothing.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookAhead looks up, in a mounted root file system, what the creation of a container will:
// fuse-overlayfs reads a whole directory for the first name in it. It changes nothing;
// what can't be looked up now will not be found later.
func lookAhead(root string, config v1.ImageConfig) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	names := slices.Clone(lookedUp)
	program := "sh"
	if command := slices.Concat(config.Entrypoint, config.Cmd); len(command) > 0 && command[0] != "" {
		program = command[0]
	}
	list := usualPath
	for _, v := range config.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			list = value
		}
	}
	if strings.Contains(program, "/") {
		names = append(names, path.Join("/", config.WorkingDir, program))
		program = "sh"
	}
	for at := range strings.SplitSeq(list, ":") {
		if path.IsAbs(at) {
			names = append(names, path.Join(at, path.Base(program)))
		}
	}
	for _, name := range names {
		if fd, err := openat2.InRoot(dir, name, unix.O_PATH); err == nil {
			unix.Close(fd)
		}
	}
}

// memoryIsShort reports whether spares had better go: processes wait for memory, or little
// is available.
func memoryIsShort() bool {
	const pressed = 5 // percent of the last ten seconds in which somebody waited
	var avg10 float64
	if data, err := os.ReadFile("/proc/pressure/memory"); err == nil {
		if _, err := fmt.Sscanf(string(data), "some avg10=%f", &avg10); err == nil && avg10 >= pressed {
			return true
		}
	}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false
	}
	var total, available uint64
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &available)
	}
	return available < total/16
}
