package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Save writes the configuration to a file of the program's own, as a whole and with
// its paths expanded. The file is replaced at once: a reader finds the old or the new
// one.
func Save(file string, c *Config) error {
	text, err := c.Encode()
	if err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("save the configuration: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("save the configuration: %w", err)
	}
	return nil
}

// Encode returns what Save writes.
func (c *Config) Encode() ([]byte, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	return text, nil
}

// LoadSaved reads what Save wrote, perhaps in another version: what that did not know
// has its default, what this one does not know is left out. The error wraps ErrInvalid
// when a value is one that this version refuses, and fs.ErrNotExist when nothing was
// saved.
func LoadSaved(file string) (*Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the saved configuration: %w", err)
	}
	c := Default()
	if err := json.Unmarshal(text, c); err != nil {
		return nil, errors.Join(ErrInvalid, fmt.Errorf("decode the saved configuration %s: %w", file, err))
	}
	if c.uplinkOverlaps6() >= 0 {
		c.Node.UplinkIPv6 = false // it was valid when it was saved: by a version whose uplink had none
	}
	if problems := c.Validate(); len(problems) > 0 {
		return nil, &Error{Problems: problems}
	}
	return c, nil
}

// Equal reports whether two configurations have the same values, wherever they come
// from.
func (c *Config) Equal(other *Config) bool {
	a, err1 := json.Marshal(c)
	b, err2 := json.Marshal(other)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}
