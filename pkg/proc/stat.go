package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Stat is what is used of /proc/PID/stat (proc_pid_stat(5)). Times are in clock
// ticks; those of Children are of children that were waited for.
type Stat struct {
	State                            byte // of the first thread: 'R', 'S', …; 'Z' and 'X' have ended
	PPID, Group, Session             int
	Flags                            uint64 // of the first thread: PF_EXITING, …
	MinorFaults, ChildrenMinorFaults uint64
	MajorFaults, ChildrenMajorFaults uint64
	User, System                     uint64
	ChildrenUser, ChildrenSystem     uint64
	Threads                          uint64
	StartTime                        uint64 // since boot
	StartStack                       uint64 // where the stack of the program image begins; 0 if we may not know
}

// Ended reports whether the process is a zombie or about to vanish. One whose first thread
// has ended, and others have not, looks like a zombie that has more than one thread.
func (s Stat) Ended() bool { return s.State == 'X' || s.State == 'Z' && s.Threads <= 1 }

// ending reports whether the process has ended or is about to: none of its code runs any more.
func (s Stat) ending() bool {
	const exiting = 0x4 // PF_EXITING of linux/sched.h
	return s.Ended() || s.Flags&exiting != 0 && s.Threads <= 1
}

// Dir returns the directory of /proc that shows the namespaces, the root and the files of a
// process: its own one, or after the end of its first thread that of another thread. It is
// the process's own one if there is none.
func Dir(pid int) string {
	own := "/proc/" + strconv.Itoa(pid)
	if st, err := ReadStat(pid); err != nil || st.State != 'Z' || st.Ended() {
		return own
	}
	tasks, _ := os.ReadDir(own + "/task")
	for _, task := range tasks {
		dir := own + "/task/" + task.Name()
		if _, err := os.Readlink(dir + "/ns/mnt"); err == nil {
			return dir
		}
	}
	return own
}

// ReadStat returns the state of the process or thread that has pid now. ErrGone
// when there is none.
func ReadStat(pid int) (Stat, error) {
	// The file has some 350 bytes, and at most 52 numbers and a name.
	var buf [1536]byte
	text, err := ReadShort("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return Stat{}, ErrGone
	}
	if err != nil {
		return Stat{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	s, err := parseStat(text)
	if err != nil {
		return Stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return s, nil
}

// ReadShort reads a file of /proc that fits into buf, by three system calls.
func ReadShort(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return buf[:max(n, 0)], err
	}
}

// statFields is the number of the last field that is used, by the manual's count.
const statFields = 28

// parseStat parses the file. A process names itself, also ") 1 (": the fields
// are counted from the last parenthesis.
func parseStat(text []byte) (s Stat, err error) {
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return s, errors.New("there is no command name")
	}
	var f [statFields + 1][]byte // by the manual's count; the state is field 3
	n := 3
	for field := range bytes.FieldsSeq(text[i+1:]) {
		if n > statFields {
			break
		}
		f[n] = field
		n++
	}
	if n <= statFields || len(f[3]) != 1 {
		return s, fmt.Errorf("malformed: %q", text)
	}
	number := func(n int) uint64 {
		v, numErr := strconv.ParseUint(string(f[n]), 10, 64)
		if numErr != nil {
			err = fmt.Errorf("field %d: %w", n, numErr)
		}
		return v
	}
	// A group or session of another PID namespace is 0, or -1 for the kernel's own.
	id := func(n int) int {
		v, numErr := strconv.Atoi(string(f[n]))
		if numErr != nil {
			err = fmt.Errorf("field %d: %w", n, numErr)
		}
		return v
	}
	s = Stat{
		State: f[3][0], PPID: id(4), Group: id(5), Session: id(6), Flags: number(9),
		MinorFaults: number(10), ChildrenMinorFaults: number(11),
		MajorFaults: number(12), ChildrenMajorFaults: number(13),
		User: number(14), System: number(15),
		// cutime and cstime are signed in the manual, and never negative.
		ChildrenUser: number(16), ChildrenSystem: number(17),
		Threads: number(20), StartTime: number(22), StartStack: number(28),
	}
	return s, err
}

// PIDs returns the processes of our PID namespace.
func PIDs() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
