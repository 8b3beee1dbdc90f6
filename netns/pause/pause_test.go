package pause

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write testdata/*.hex again, after a look at their disassembly")

// The programs are what was looked at instruction by instruction: a change shows here.
// To look at one: go run golang.org/x/arch/… or objdump -D -b binary, from 0x300 on.
// netns tries the one for this machine.
func TestPrograms(t *testing.T) {
	for arch := range machines {
		for name, steps := range map[string]func(*assembler){"pause": Setup{UID: 65536, GID: 65537}.steps, "waiter": wait} {
			p, err := compile(arch, steps)
			if err != nil {
				t.Fatal(err)
			}
			got := []byte(hex.Dump(p.ELF))
			file := filepath.Join("testdata", name+"-"+arch+".hex")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s of %s is not that of %s (%v): if it should differ, look at it and run with -update", name, arch, file, err)
			}
		}
	}
}

// The numbers of this machine are those that golang.org/x/sys has.
func TestNumbers(t *testing.T) {
	want := map[string]uint64{
		"capset": unix.SYS_CAPSET, "chdir": unix.SYS_CHDIR, "close": unix.SYS_CLOSE, "close_range": unix.SYS_CLOSE_RANGE,
		"exit_group": unix.SYS_EXIT_GROUP, "mount": unix.SYS_MOUNT, "pivot_root": unix.SYS_PIVOT_ROOT, "ppoll": unix.SYS_PPOLL,
		"prctl": unix.SYS_PRCTL, "rt_sigaction": unix.SYS_RT_SIGACTION, "seccomp": unix.SYS_SECCOMP, "setgroups": unix.SYS_SETGROUPS,
		"setresgid": unix.SYS_SETRESGID, "setresuid": unix.SYS_SETRESUID, "umount2": unix.SYS_UMOUNT2, "write": unix.SYS_WRITE,
	}
	m := machines[runtime.GOARCH]
	if m == nil {
		t.Skipf("no program for %s", runtime.GOARCH)
	}
	for name, n := range numbers {
		if got, ok := want[name]; !ok || got != n[m.numbers] {
			t.Errorf("%s is %d, want %d", name, n[m.numbers], got)
		}
	}
}

func TestCheck(t *testing.T) {
	p, err := compile("amd64", Setup{}.steps)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check([]byte{1}); err != nil {
		t.Errorf("ready: %v", err)
	}
	errno := int64(syscall.EPERM)
	failed := p.Check(words(uint64(-errno), 4))
	if !errors.Is(failed, syscall.EPERM) || !strings.HasPrefix(failed.Error(), "mount (step 4)") {
		t.Errorf("a failure: %v", failed)
	}
	for _, report := range [][]byte{nil, {1, 1}, words(0, 1<<40), words(1, 2, 3)} {
		if p.Check(report) == nil {
			t.Errorf("%x is taken for a success", report)
		}
	}
	if _, err := compile("riscv64", wait); err == nil {
		t.Error("a program for a machine that is not known")
	}
}
