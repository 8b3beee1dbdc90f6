//go:build ignore

// Gen writes syscalls/*.txt, the system call numbers of each architecture, from
// the tables of golang.org/x/sys/unix (which are made from the kernel's headers).
// Run it with "go generate" after an update of that module.
package main

import (
	"bufio"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

var line = regexp.MustCompile(`^\s*SYS_([A-Z0-9_]+)\s*=\s*(\d+)`)

// The numbers that ARM has on top of the generic table (asm/unistd.h of arm).
var armPrivate = []string{"breakpoint 983041", "cacheflush 983042", "get_tls 983046", "set_tls 983045", "usr26 983043", "usr32 983044"}

func main() {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	for goarch, name := range map[string]string{"amd64": "x86_64", "386": "x86", "arm64": "aarch64", "arm": "arm"} {
		path := filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+goarch+".go")
		if err := write(path, filepath.Join("syscalls", name+".txt"), name); err != nil {
			log.Fatal(err)
		}
	}
}

func write(src, dst, arch string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		name := strings.ToLower(m[1])
		if arch == "aarch64" && name == "fstatat" {
			name = "newfstatat"
		}
		out = append(out, name+" "+m[2])
	}
	if arch == "arm" {
		out = append(out, armPrivate...)
	}
	sort.Strings(out)
	return os.WriteFile(dst, []byte(strings.Join(out, "\n")+"\n"), 0o644)
}
