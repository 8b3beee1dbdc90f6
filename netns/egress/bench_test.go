package egress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["measure"] = measure
}

// measure prints how many bytes a second a connection sends and receives, and the median of connects in
// nanoseconds; after each line of its input.
func measure(args []string) error {
	in := bufio.NewReader(os.Stdin)
	for {
		if _, err := in.ReadString('\n'); err != nil {
			return nil
		}
		up, err := throughput(args[0], 'r')
		down, err2 := throughput(args[0], 'w')
		took, err3 := connects(args[1], 300)
		if err := errors.Join(err, err2, err3); err != nil {
			return err
		}
		fmt.Println(up, down, took.Nanoseconds())
	}
}

const measured = 700 * time.Millisecond

func throughput(address string, direction byte) (int64, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, 256<<10)
	if _, err := conn.Write([]byte{direction}); err != nil {
		return 0, err
	}
	begin, n := time.Now(), 0
	for time.Since(begin) < measured {
		size := 0
		if direction == 'w' {
			size, err = conn.Read(buf)
		} else {
			size, err = conn.Write(buf)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		n += size
	}
	return int64(float64(n) / time.Since(begin).Seconds()), nil
}

func connects(address string, n int) (time.Duration, error) {
	var all []time.Duration
	for range n {
		fd := tcp(0)
		begin := time.Now()
		err := unix.Connect(fd, sockaddr(address))
		all = append(all, time.Since(begin))
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// BenchmarkEgress compares a pod whose connections are switched with the host itself, both to the outside, in
// alternating runs. It reports ratios: sent, received, and by how many µs a connect takes longer.
func BenchmarkEgress(b *testing.B) {
	w := newWorld(b)
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	begin := func(start func(*exec.Cmd) error) func() [3]float64 {
		cmd := exec.Command(exe, outside+":"+bulkPort, peer)
		cmd.Env = append(os.Environ(), "TEST_EGRESS=measure")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err, err2); err != nil {
			b.Fatal(err)
		}
		if err := start(cmd); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		lines := bufio.NewScanner(out)
		return func() (r [3]float64) {
			fmt.Fprintln(in)
			if !lines.Scan() {
				b.Fatal("it has ended")
			}
			if _, err := fmt.Sscan(strings.TrimSpace(lines.Text()), &r[0], &r[1], &r[2]); err != nil {
				b.Fatal(lines.Text(), err)
			}
			return r
		}
	}
	pod := begin(w.inPod)
	host := begin((*exec.Cmd).Start)
	var sent, received, longer, plain []float64
	for first := true; b.Loop(); first = !first {
		var p, h [3]float64
		if first {
			p, h = pod(), host()
		} else {
			h = host()
			p = pod()
		}
		sent, received = append(sent, p[0]/h[0]), append(received, p[1]/h[1])
		longer, plain = append(longer, (p[2]-h[2])/1000), append(plain, h[2]/1000)
	}
	for name, values := range map[string][]float64{"sent/host": sent, "received/host": received, "connect-µs-longer": longer, "connect-µs-host": plain} {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], name)
	}
}
