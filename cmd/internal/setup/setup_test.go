package setup

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// account is a home with programs in the place of systemctl and loginctl, which log how
// they are called and do what a file "state" says.
type account struct {
	Setup
	t   *testing.T
	dir string
	out strings.Builder
}

// fake answers as a systemctl that keeps the units enabled and active in files, and refuses
// to disable one without a file, and as a loginctl that is refused where there is a file
// "no-linger".
const fake = `#!/bin/sh
cd "$FAKE" || exit 1
echo "${0##*/} $*" >>calls
case "${0##*/} $*" in
*show-environment*) cat manager-env 2>/dev/null || true ;;
*"show --property=UnitPath"*) echo "UnitPath=$FAKE/home/.config/systemd/user.control $FAKE/home/.config/systemd/user /etc/systemd/user" ;;
*is-enabled*) test -e "enabled-${*##* }" ;;
*is-active*) test -e "active-${*##* }" ;;
*"enable --now"*) touch "enabled-${*##* }" "active-${*##* }"; if test -e no-start; then echo "Job for ${*##* } failed" >&2; exit 1; fi ;;
*"disable --now"*) if ! test -e "home/.config/systemd/user/${*##* }"; then echo "Failed to disable unit: Unit file ${*##* } does not exist." >&2; exit 1; fi; rm -f "enabled-${*##* }" "active-${*##* }" ;;
*"--user stop"*) rm -f "active-${*##* }" ;;
*"show --property=LoadState"*) if test -e "home/.config/systemd/user/${*##* }"; then echo LoadState=loaded; else echo LoadState=not-found; fi ;;
*"show --property=ActiveState"*) if test -e "active-${*##* }"; then echo ActiveState=active; else echo ActiveState=inactive; fi ;;
*"enable-linger") if test -e no-linger; then echo "Could not enable linger: Interactive authentication required." >&2; exit 1; fi; touch "root/var/lib/systemd/linger/ann" ;;
*"disable-linger") if test -e no-linger; then echo "Could not disable linger: Interactive authentication required." >&2; exit 1; fi; rm -f "root/var/lib/systemd/linger/ann" ;;
esac
`

func newAccount(t *testing.T, systemd bool) *account {
	dir := t.TempDir()
	a := &account{t: t, dir: dir}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"bin", "run/subpod", "root/var/lib/systemd/linger"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if systemd {
		for _, d := range []string{"run/systemd", "root/run/systemd/system"} {
			if err := os.MkdirAll(in(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range map[string]string{"systemctl": fake, "loginctl": fake, "bash": "", "fish": ""} {
		if err := os.WriteFile(in("bin/"+name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("FAKE", dir)
	t.Setenv("PATH", in("bin")+":/usr/bin:/bin")
	a.Setup = Setup{
		Binary: "/home/ann/.local/bin/subpod", User: "ann", RuntimeDir: in("run"), Root: in("root"), Socket: in("run/subpod/subpod.sock"),
		Home: in("home"), Getenv: func(name string) string { return map[string]string{"HOME": in("home")}[name] }, Variables: []string{"HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"},
		ConfigHome: in("home/.config"), DataHome: in("home/.local/share"), StateHome: in("home/.local/state"),
		Completions: map[string]string{"bash": "# bash\n", "fish": "# fish\n"}, Out: &a.out,
	}
	return a
}

// do runs Do and returns what it printed.
func (a *account) do() string {
	a.t.Helper()
	a.out.Reset()
	if err := a.Do(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	return a.out.String()
}

func (a *account) undo() string {
	a.t.Helper()
	a.out.Reset()
	if err := a.Undo(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	return a.out.String()
}

// files lists what is in the home, below which nothing is at first.
func (a *account) files() (list []string) {
	_ = filepath.WalkDir(filepath.Join(a.dir, "home"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			list = append(list, strings.TrimPrefix(path, a.dir+"/"))
		}
		return nil
	})
	return list
}

func (a *account) calls() string {
	b, _ := os.ReadFile(filepath.Join(a.dir, "calls"))
	return string(b)
}

func (a *account) touch(name string) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), nil, 0o644); err != nil {
		a.t.Fatal(err)
	}
}

// TestDoAndUndo: what is done is said, done once, and taken back so that nothing is left.
func TestDoAndUndo(t *testing.T) {
	a := newAccount(t, true)
	a.DryRun = true
	out := a.do()
	for _, want := range []string{"would write: " + a.ConfigHome + "/systemd/user/subpod.service", "would enable linger", "would enable and start subpod.service"} {
		if !strings.Contains(out, want) {
			t.Errorf("the dry run does not say %q:\n%s", want, out)
		}
	}
	if got := a.files(); len(got) > 0 || strings.Contains(a.calls(), "enable") {
		t.Errorf("the dry run wrote %q, and called:\n%s", got, a.calls())
	}
	a.DryRun = false
	out = a.do()
	for _, want := range []string{"wrote: " + a.ConfigHome + "/systemd/user/subpod.service", "wrote: " + a.crictlFile(), "enabled linger", "started subpod.service", "CRI_CONFIG_FILE=" + a.crictlFile()} {
		if !strings.Contains(out, want) {
			t.Errorf("not said: %q:\n%s", want, out)
		}
	}
	unit, err := os.ReadFile(filepath.Join(a.ConfigHome, "systemd/user/subpod.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/home/ann/.local/bin/subpod daemon\n") {
		t.Errorf("the unit: %v\n%s", err, unit)
	}
	before := a.files()
	for _, want := range []string{"home/.config/fish/completions/subpod.fish", "home/.local/share/bash-completion/completions/subpod"} {
		if !slices.Contains(before, want) {
			t.Errorf("no %s in %q", want, before)
		}
	}
	out = a.do()
	if got := a.files(); !slices.Equal(got, before) || strings.Contains(out, "wrote") || strings.Contains(out, "enabled linger") {
		t.Errorf("the second time: %q, was %q; said:\n%s", got, before, out)
	}
	// An update of subpod changes what is written.
	a.Completions["bash"] = "# newer\n"
	if out := a.do(); !strings.Contains(out, "wrote: "+a.DataHome+"/bash-completion/completions/subpod") {
		t.Errorf("after an update:\n%s", out)
	}
	a.DryRun = true
	if out := a.undo(); !strings.Contains(out, "would remove: "+a.crictlFile()) || len(a.files()) != len(before) {
		t.Errorf("dry undo: %q\n%s", a.files(), out)
	}
	a.DryRun = false
	a.undo()
	if got := a.files(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	for _, want := range []string{"disable --now subpod.service", "disable-linger"} {
		if !strings.Contains(a.calls(), want) {
			t.Errorf("no %q in:\n%s", want, a.calls())
		}
	}
	if out := a.undo(); !strings.Contains(out, "nothing to take back") {
		t.Errorf("the second undo:\n%s", out)
	}
}

// TestWhatIsTheUsers: neither is written over nor removed.
func TestWhatIsTheUsers(t *testing.T) {
	a := newAccount(t, true)
	unit := filepath.Join(a.ConfigHome, "systemd/user/subpod.service")
	fish := filepath.Join(a.ConfigHome, "fish/completions/subpod.fish")
	bash := filepath.Join(a.DataHome, "bash-completion/completions/subpod")
	for _, f := range []string{unit, fish} {
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(unit, []byte("[Service]\n"), 0o644), os.Symlink("/nowhere", fish)); err != nil {
		t.Fatal(err)
	}
	out := a.do()
	for _, f := range []string{unit, fish} {
		if !strings.Contains(out, "kept: "+f) {
			t.Errorf("%s is not kept:\n%s", f, out)
		}
	}
	if err := os.WriteFile(bash, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := a.do(); !strings.Contains(out, "kept: "+bash) {
		t.Errorf("the changed one is not kept:\n%s", out)
	}
	if out := a.undo(); !strings.Contains(out, "kept: "+bash+", which was changed") {
		t.Errorf("undo does not keep the changed one:\n%s", out)
	}
	for f, want := range map[string]string{unit: "[Service]\n", bash: "# mine\n"} {
		if b, err := os.ReadFile(f); err != nil || string(b) != want {
			t.Errorf("%s: %v, %q", f, err, b)
		}
	}
	if to, err := os.Readlink(fish); err != nil || to != "/nowhere" {
		t.Errorf("the link: %v, %s", err, to)
	}
}

// TestLinger: what was enabled before stays so, and a refusal is said with its remedy.
func TestLinger(t *testing.T) {
	a := newAccount(t, true)
	a.touch("no-linger")
	if out := a.do(); !strings.Contains(out, "sudo loginctl enable-linger ann") || !strings.Contains(out, "Interactive authentication required") {
		t.Errorf("the refusal is not said:\n%s", out)
	}
	a.undo()
	a.touch("root/var/lib/systemd/linger/ann")
	a.do()
	a.undo()
	if strings.Contains(a.calls(), "disable-linger") {
		t.Errorf("linger of before was disabled:\n%s", a.calls())
	}
}

// TestSystem: what an installation for all users has is not written again.
func TestSystem(t *testing.T) {
	a := newAccount(t, true)
	a.Binary = "/usr/bin/subpod"
	files, err := a.Setup.files(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if len(f.system) == 0 {
			continue
		}
		if err := os.MkdirAll(f.system[0], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.system[0], filepath.Base(f.path)), []byte(f.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := a.do(); strings.Count(out, "wrote") != 1 || !strings.Contains(out, "wrote: "+a.crictlFile()) || !strings.Contains(out, "started subpod.service") {
		t.Errorf("beside a package:\n%s", out)
	}
}

// TestRefusals: a daemon outside of systemd, the other way of starting, a start that
// fails: each is said, and the first two change nothing.
func TestRefusals(t *testing.T) {
	a := newAccount(t, true)
	l, err := net.Listen("unix", a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Do(t.Context()); !errors.Is(err, ErrForeignDaemon) || len(a.files()) > 0 {
		t.Errorf("with a foreign daemon: %v, %q", err, a.files())
	}
	l.Close()
	a.do()
	a.OnDemand = true
	if err := a.Do(t.Context()); !errors.Is(err, ErrOtherUnit) {
		t.Errorf("the other way: %v", err)
	}
	a.OnDemand = false
	a.undo()
	a.OnDemand = true
	before := a.files()
	own := a.Socket
	a.Socket = "/tmp/own.sock"
	if err := a.Do(t.Context()); !errors.Is(err, ErrOtherSocket) || !slices.Equal(a.files(), before) {
		t.Errorf("on demand with another socket: %v, %q", err, a.files())
	}
	a.Socket = own
	if out := a.do(); !strings.Contains(out, "started subpod.socket") {
		t.Errorf("on demand:\n%s", out)
	}
	a.undo()
	a.touch("no-start")
	if err := a.Do(t.Context()); err == nil || !strings.Contains(err.Error(), "journalctl --user -u subpod") {
		t.Errorf("a start that fails: %v", err)
	}
	a.undo()
}

// TestUndoWithoutSession: where systemd runs the service and cannot be asked (su, sudo),
// nothing is taken back and nothing forgotten; where there is no systemd any more, all is.
func TestUndoWithoutSession(t *testing.T) {
	a := newAccount(t, true)
	a.do()
	before := a.files()
	if err := os.Remove(filepath.Join(a.RuntimeDir, "systemd")); err != nil {
		t.Fatal(err)
	}
	if err := a.Undo(t.Context()); !errors.Is(err, ErrNoSession) || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("without a session: %v", err)
	}
	if got := a.files(); !slices.Equal(got, before) || strings.Contains(a.calls(), "disable") {
		t.Errorf("left: %q, was %q; called:\n%s", got, before, a.calls())
	}
	if err := os.RemoveAll(filepath.Join(a.Root, "run")); err != nil {
		t.Fatal(err)
	}
	a.undo()
	if got := a.files(); len(got) > 0 {
		t.Errorf("without systemd: %q is left", got)
	}
}

// TestUndoInParts: what an undo could not do is left for the next one, which does not
// stumble over what is gone by then; nor does one where the user has removed the unit.
func TestUndoInParts(t *testing.T) {
	a := newAccount(t, true)
	a.do()
	a.touch("no-linger")
	for range 2 {
		if err := a.Undo(t.Context()); err == nil || !strings.Contains(err.Error(), "disable-linger") || strings.Contains(err.Error(), "systemctl") {
			t.Errorf("where loginctl refuses: %v", err)
		}
	}
	if err := os.Remove(filepath.Join(a.dir, "no-linger")); err != nil {
		t.Fatal(err)
	}
	a.undo()
	a.do()
	if err := os.Remove(filepath.Join(a.ConfigHome, "systemd/user", unitService)); err != nil {
		t.Fatal(err)
	}
	if out := a.undo(); !strings.Contains(out, "stopped and disabled subpod.service") {
		t.Errorf("without a unit file:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(a.dir, "active-subpod.service")); err == nil {
		t.Error("the service is still active")
	}
}

// TestBrokenOff: a file whose update was noted and not written, as on a full disk, is still
// setup's; nothing else is left of the attempt.
func TestBrokenOff(t *testing.T) {
	a := newAccount(t, false)
	a.do()
	bash := filepath.Join(a.DataHome, "bash-completion/completions/subpod")
	inTheWay := filepath.Join(filepath.Dir(bash), ".subpod.new/x")
	for _, text := range []string{"# newer\n", "# newest\n"} {
		if err := os.MkdirAll(inTheWay, 0o755); err != nil {
			t.Fatal(err)
		}
		a.Completions["bash"] = text
		if err := a.Do(t.Context()); err == nil {
			t.Fatal("there was no error")
		}
	}
	if err := os.RemoveAll(filepath.Dir(inTheWay)); err != nil {
		t.Fatal(err)
	}
	if out := a.do(); !strings.Contains(out, "wrote: "+bash) {
		t.Errorf("after the attempts:\n%s", out)
	}
	if r, err := a.load(); err != nil || len(r.Former) > 0 {
		t.Errorf("the record: %+v, %v", r, err)
	}
	a.undo()
	if got := a.files(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestAtOnce: another call is refused while one is at work.
func TestAtOnce(t *testing.T) {
	a := newAccount(t, false)
	a.do()
	unlock, err := a.lock()
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []func(context.Context) error{a.Do, a.Undo} {
		if err := call(t.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("at the same time: %v", err)
		}
	}
	unlock()
	a.undo()
}

// TestOtherKinds: links to what setup has written and directories in the place of its files
// are the user's, and keep nothing else from being done.
func TestOtherKinds(t *testing.T) {
	a := newAccount(t, false)
	a.do()
	bash := filepath.Join(a.DataHome, "bash-completion/completions/subpod")
	fish := filepath.Join(a.ConfigHome, "fish/completions/subpod.fish")
	kept := filepath.Join(a.dir, "dotfiles")
	err := errors.Join(os.Rename(bash, kept), os.Symlink(kept, bash),
		os.Remove(fish), os.Mkdir(fish, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	if out := a.do(); !strings.Contains(out, "up to date: "+bash) || !strings.Contains(out, "kept: "+fish) {
		t.Errorf("again:\n%s", out)
	}
	if out := a.undo(); !strings.Contains(out, "kept: "+bash) || !strings.Contains(out, "kept: "+fish) {
		t.Errorf("undo:\n%s", out)
	}
	if to, err := os.Readlink(bash); err != nil || to != kept {
		t.Errorf("the link: %v, %s", err, to)
	}
}

// TestWithoutSystemd: says what there is instead, and calls nothing.
func TestWithoutSystemd(t *testing.T) {
	a := newAccount(t, false)
	out := a.do()
	if !strings.Contains(out, "subpod daemon") || strings.Contains(out, "subpod.service") || a.calls() != "" {
		t.Errorf("said:\n%s\ncalled:\n%s", out, a.calls())
	}
	if _, err := os.Stat(a.crictlFile()); err != nil {
		t.Error(err)
	}
	a.undo()
	if got := a.files(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}
