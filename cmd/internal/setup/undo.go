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
		s.say("nothing to take back", "setup has not been run here")
		return nil
	}
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
		errs = append(errs, s.unlinger(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w (what is left is noted: subpod setup --undo tries again)", err)
	}
	if s.DryRun {
		return nil
	}
	if err := os.Remove(s.recordFile()); err != nil {
		return fmt.Errorf("forget what was done: %w", err)
	}
	_ = os.Remove(filepath.Dir(s.recordFile())) // it fails where something is in it
	return nil
}

func (s Setup) disable(ctx context.Context, r *record) error {
	var errs []error
	for _, unit := range r.Units {
		if s.DryRun {
			s.say("would stop and disable "+unit, "")
			continue
		}
		if unit == unitSocket {
			// The socket alone would be started again by nobody, but its service goes on.
			_, err := s.command(ctx, startTimeout, "systemctl", "--user", "stop", unitSocket, unitService)
			errs = append(errs, err)
		}
		_, err := s.command(ctx, startTimeout, "systemctl", "--user", "disable", "--now", unit)
		if err == nil {
			s.say("stopped and disabled "+unit, "")
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s Setup) unlinger(ctx context.Context) error {
	if s.DryRun {
		s.say("would disable linger", "")
		return nil
	}
	if _, err := s.command(ctx, commandTimeout, "loginctl", "--no-ask-password", "disable-linger"); err != nil {
		return err
	}
	s.say("disabled linger", "")
	return nil
}
