package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Undo takes back what Do has done: it stops and disables the units that Do has enabled,
// removes the files that are still as Do has written them, and disables linger where Do
// has enabled it. Images, containers and the user's configuration stay. Idempotent.
// ErrNoSession before anything is changed.
func (s Setup) Undo(ctx context.Context) error {
	if _, err := os.Stat(s.recordFile()); errors.Is(err, fs.ErrNotExist) {
		s.say("nothing to take back", "setup has not been run here (there is no %s)", s.recordFile())
		return nil
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		return err
	}
	var errs []error
	systemd := s.hasSystemd()
	if !systemd && s.booted() && len(r.Units) > 0 {
		return fmt.Errorf("%w to stop %s: log in as %s (not by su or sudo), or export XDG_RUNTIME_DIR=/run/user/%d; nothing was changed",
			ErrNoSession, strings.Join(r.Units, ", "), s.User, os.Getuid())
	}
	if systemd {
		errs = append(errs, s.disable(ctx, r))
	}
	errs = append(errs, s.remove(r))
	if systemd && !s.DryRun {
		_, err := s.systemctl(ctx, "daemon-reload")
		errs = append(errs, err)
	}
	if r.Linger {
		errs = append(errs, s.unlinger(ctx, r))
	}
	if err := errors.Join(errs...); err != nil {
		err = errors.Join(err, s.save(r))
		return fmt.Errorf("%w (what is left is noted: subpod setup --undo tries again)", err)
	}
	if s.DryRun {
		return nil
	}
	if err := os.Remove(s.recordFile()); err != nil {
		return fmt.Errorf("forget what was done: %w", err)
	}
	_ = os.Remove(filepath.Dir(s.recordFile())) // it fails where something is in it
	r.removeDirs()
	return nil
}

// disable stops and disables the units of the record. What is left in it could not be.
func (s Setup) disable(ctx context.Context, r *record) error {
	var errs []error
	var left []string
	for _, unit := range r.Units {
		if s.DryRun {
			s.say("would stop and disable "+unit, "")
			continue
		}
		var stopped error
		if unit == unitSocket {
			// The socket alone would be started again by nobody, but its service goes on.
			_, stopped = s.command(ctx, startTimeout, "systemctl", "--user", "stop", unitSocket, unitService)
		}
		_, err := s.command(ctx, startTimeout, "systemctl", "--user", "disable", "--now", unit)
		if err = errors.Join(stopped, err); err != nil && !s.endWithoutFile(ctx, unit) {
			errs = append(errs, err)
			left = append(left, unit)
			continue
		}
		s.say("stopped and disabled "+unit, "")
	}
	r.Units = left
	return errors.Join(errs...)
}

// endWithoutFile stops a unit whose file is gone (the user has removed it, or an Undo that
// was broken off), which systemd refuses to disable. It reports whether there is no such
// unit any more, and its service does not run.
func (s Setup) endWithoutFile(ctx context.Context, unit string) bool {
	for _, u := range []string{unit, unitService} {
		_, _ = s.command(ctx, startTimeout, "systemctl", "--user", "stop", u) // the states say how that went
	}
	if _, err := s.systemctl(ctx, "daemon-reload"); err != nil {
		return false
	}
	loaded, err := s.systemctl(ctx, "show", "--property=LoadState", unit)
	if err != nil || loaded != "LoadState=not-found" {
		return false
	}
	for _, u := range []string{unit, unitService} {
		active, err := s.systemctl(ctx, "show", "--property=ActiveState", u)
		if err != nil || active != "ActiveState=inactive" && active != "ActiveState=failed" {
			return false
		}
	}
	return true
}

func (s Setup) unlinger(ctx context.Context, r *record) error {
	if s.DryRun {
		s.say("would disable linger", "")
		return nil
	}
	if _, err := s.command(ctx, commandTimeout, "loginctl", "--no-ask-password", "disable-linger"); err != nil {
		return err
	}
	r.Linger = false
	s.say("disabled linger", "")
	return nil
}
