package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that the cgroup does not exist.
var ErrGone = errors.New("cgroup is gone")

// Stats are the numbers of one cgroup at one moment. A nil part means that its
// controller is not there.
type Stats struct {
	At     time.Time
	CPU    *CPU
	Memory *Memory
	Pids   *Pids
	IO     *IO
}

// CPU time, all in microseconds (cpu.stat).
type CPU struct {
	UsageUsec, UserUsec, SystemUsec          uint64
	Periods, ThrottledPeriods, ThrottledUsec uint64
	Pressure                                 *Pressure
}

// Memory in bytes.
type Memory struct {
	Current, Swap uint64
	Limit         uint64            // 0: none
	SwapLimit     uint64            // 0: none
	Stat          map[string]uint64 // memory.stat
	OOMKills      uint64            // processes killed (memory.events)
	Pressure      *Pressure
}

// WorkingSet is what the kubelet evicts by: usage without inactive file pages.
func (m Memory) WorkingSet() uint64 {
	if inactive := m.Stat["inactive_file"]; inactive < m.Current {
		return m.Current - inactive
	}
	return 0
}

// Pids counts tasks. Limit 0: none.
type Pids struct{ Current, Limit uint64 }

// IO in bytes and operations, summed over all devices.
type IO struct {
	ReadBytes, WriteBytes, Reads, Writes uint64
	Pressure                             *Pressure
}

// Pressure is pressure stall information (accounting/psi.rst).
type Pressure struct{ Some, Full Stall }

// Stall has averages in percent of time and the total in microseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	TotalUsec            uint64
}

// Read reads the statistics of the cgroup directory dir. ErrGone when it does not
// exist (any more).
func Read(dir string) (Stats, error) {
	s := Stats{At: time.Now()}
	cpu, err := flat(dir, "cpu.stat")
	if err != nil {
		if isGone(err) {
			if _, statErr := os.Stat(dir); statErr != nil {
				return Stats{}, fmt.Errorf("%w: %s", ErrGone, dir)
			}
		}
		return Stats{}, fmt.Errorf("cgroup statistics: %w", err)
	}
	s.CPU = &CPU{
		UsageUsec: cpu["usage_usec"], UserUsec: cpu["user_usec"], SystemUsec: cpu["system_usec"],
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledUsec: cpu["throttled_usec"],
		Pressure: pressure(dir, "cpu.pressure"),
	}
	s.Memory = readMemory(dir)
	if n, ok := number(dir, "pids.current"); ok {
		limit, _ := number(dir, "pids.max")
		s.Pids = &Pids{Current: n, Limit: limit}
	}
	s.IO = readIO(dir)
	return s, nil
}

func readMemory(dir string) *Memory {
	current, ok := number(dir, "memory.current")
	if !ok {
		return nil
	}
	m := &Memory{Current: current, Pressure: pressure(dir, "memory.pressure")}
	m.Swap, _ = number(dir, "memory.swap.current")
	m.Limit, _ = number(dir, "memory.max")
	m.SwapLimit, _ = number(dir, "memory.swap.max")
	m.Stat, _ = flat(dir, "memory.stat")
	if events, err := flat(dir, "memory.events"); err == nil {
		m.OOMKills = events["oom_kill"]
	}
	return m
}

func readIO(dir string) *IO {
	b, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	psi := pressure(dir, "io.pressure")
	if err != nil && psi == nil {
		return nil
	}
	io := &IO{Pressure: psi}
	// One line per device: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
	for _, field := range strings.Fields(string(b)) {
		key, value, ok := strings.Cut(field, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if !ok || err != nil {
			continue
		}
		switch key {
		case "rbytes":
			io.ReadBytes += n
		case "wbytes":
			io.WriteBytes += n
		case "rios":
			io.Reads += n
		case "wios":
			io.Writes += n
		}
	}
	return io
}

// flat reads a flat keyed file: "key value" lines.
func flat(dir, name string) (map[string]uint64, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]uint64{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out, s.Err()
}

// number reads a single value; "max" is 0.
func number(dir, name string) (uint64, bool) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, false
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return 0, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}

func pressure(dir, name string) *Pressure {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	p := &Pressure{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		stall := &p.Some
		if fields[0] == "full" {
			stall = &p.Full
		}
		for _, field := range fields[1:] {
			stall.set(field)
		}
	}
	return p
}

func (s *Stall) set(field string) {
	key, value, _ := strings.Cut(field, "=")
	if key == "total" {
		s.TotalUsec, _ = strconv.ParseUint(value, 10, 64)
		return
	}
	n, _ := strconv.ParseFloat(value, 64)
	switch key {
	case "avg10":
		s.Avg10 = n
	case "avg60":
		s.Avg60 = n
	case "avg300":
		s.Avg300 = n
	}
}

// isGone: a cgroup that is being removed answers ENODEV on open files.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
