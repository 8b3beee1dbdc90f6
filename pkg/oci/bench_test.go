package oci

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// durations collects one step's times; the median is reported.
type durations map[string][]time.Duration

func (d durations) step(name string, do func() error) error {
	begin := time.Now()
	err := do()
	d[name] = append(d[name], time.Since(begin))
	return err
}

func (d durations) report(b *testing.B) {
	for name, all := range d {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-ms")
	}
	b.ReportMetric(0, "ns/op") // means nothing here
}

// defaultProfile adds the profile that "RuntimeDefault" means.
func defaultProfile(b *testing.B) func(*specs.Spec) {
	return func(s *specs.Spec) {
		p, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			b.Fatal(err)
		}
		s.Linux.Seccomp = p
	}
}

// BenchmarkLife measures a container's life by step; all is create to start.
func BenchmarkLife(b *testing.B) {
	for _, c := range []struct {
		name, handler string
		profile, bpf  bool
	}{
		{"crun/no-seccomp", "crun", false, false},
		{"crun/profile", "crun", true, false},
		{"crun/bpf", "crun", true, true},
		{"runc/no-seccomp", "runc", false, false},
		{"runc/profile", "runc", true, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			e := executor(b)
			spec := container{handler: c.handler}
			if c.profile {
				spec.change = defaultProfile(b)
			}
			if c.bpf {
				compiled := create(b, e, spec)
				data, err := os.ReadFile(filepath.Join(e.handlers["crun"].stateDir(compiled.id), "seccomp.bpf"))
				if err != nil {
					b.Fatal(err)
				}
				spec.bpf = base64.StdEncoding.EncodeToString(data)
			}
			d := durations{}
			for b.Loop() {
				life(b, e, createSpec(b, e, spec), d)
			}
			d.report(b)
		})
	}
}

func life(b *testing.B, e *Executor, s creation, d durations) {
	b.Helper()
	ctx := context.Background()
	p := *s.Spec.Process
	p.Args = []string{"/bin/true"}
	var f Container
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	must(d.step("up", func() error {
		if err := d.step("create", func() (err error) { f, err = createAs(ctx, e, s); return err }); err != nil {
			return err
		}
		return d.step("start", func() error { return e.Start(ctx, s.ID, f) })
	}))
	must(d.step("exec", func() error {
		_, err := e.ExecSync(ctx, s.ID, f, ExecSpec{Process: &p})
		return err
	}))
	must(d.step("stop", func() error {
		if err := e.Signal(ctx, s.ID, f, syscall.SIGKILL, false); err != nil {
			return err
		}
		_, err := e.Wait(ctx, s.ID, f)
		return err
	}))
	must(d.step("delete", func() error { return e.Delete(ctx, s.ID, f) }))
}

// BenchmarkBareRun is what there is to compare with: the runtime alone runs a
// container that ends at once.
func BenchmarkBareRun(b *testing.B) {
	for _, c := range []struct {
		name, handler string
		profile       bool
	}{{"crun/no-seccomp", "crun", false}, {"crun/profile", "crun", true}, {"runc/no-seccomp", "runc", false}} {
		b.Run(c.name, func(b *testing.B) {
			e := executor(b)
			spec := container{handler: c.handler, args: []string{"/bin/true"}}
			if c.profile {
				spec.change = defaultProfile(b)
			}
			s := createSpec(b, e, spec)
			bundle := b.TempDir()
			data, err := json.Marshal(s.Spec)
			if err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bundle, configFile), data, 0o600); err != nil {
				b.Fatal(err)
			}
			d := durations{}
			for b.Loop() {
				argv := e.handlers[c.handler].argv("run", "--bundle", bundle, newID())
				err := d.step("run", func() error {
					out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			d.report(b)
		})
	}
}
