package bridge

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// ipv6Off reports whether IPv6 is off on the interface in the calling thread's
// network namespace, or missing in the kernel.
func ipv6Off(ifname string) bool {
	v, err := readSysctl("net/ipv6/conf/" + ifname + "/disable_ipv6")
	return err != nil || v != 0
}

func readSysctl(path string) (int, error) {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return 0, err
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return strconv.Atoi(string(b))
}

// setSysctl writes the value unless it is there already: /proc/sys may be
// read-only and right.
func setSysctl(path string, value int) error {
	have, err := readSysctl(path)
	if err == nil && have == value {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile("/proc/sys/"+path, []byte(strconv.Itoa(value)), 0)
}
