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
	// MemoryPressure is there without the memory controller, too.
	MemoryPressure *Pressure
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
	LimitHits     uint64            // how often the limit was about to be exceeded (memory.events)
	Peak          uint64            // most that was ever used; 0: not known (Linux 5.19)
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
	Devices                              []Device
	Pressure                             *Pressure
}

// Device is what was read from and written to one block device, in bytes.
type Device struct {
	Number                string // major:minor
	ReadBytes, WriteBytes uint64
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
	s.MemoryPressure = pressure(dir, "memory.pressure")
	if s.Memory = readMemory(dir); s.Memory != nil {
		s.Memory.Pressure = s.MemoryPressure
	}
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
	m := &Memory{Current: current}
	m.Swap, _ = number(dir, "memory.swap.current")
	m.Limit, _ = number(dir, "memory.max")
	m.SwapLimit, _ = number(dir, "memory.swap.max")
	m.Stat, _ = flat(dir, "memory.stat")
	if events, err := flat(dir, "memory.events"); err == nil {
		m.OOMKills, m.LimitHits = events["oom_kill"], events["max"]
	}
	m.Peak, _ = number(dir, "memory.peak")
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
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue // a device that nothing has used
		}
		io.add(fields[0], fields[1:])
	}
	return io
}

// add adds the counters of one device.
func (io *IO) add(number string, fields []string) {
	d := Device{Number: number}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if !ok || err != nil {
			continue
		}
		switch key {
		case "rbytes":
			d.ReadBytes = n
		case "wbytes":
			d.WriteBytes = n
		case "rios":
			io.Reads += n
		case "wios":
			io.Writes += n
		}
	}
	io.ReadBytes += d.ReadBytes
	io.WriteBytes += d.WriteBytes
	io.Devices = append(io.Devices, d)
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
