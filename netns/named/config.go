package named

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
)

// Config is a network as it is stored.
type Config struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Number tells its bridge, tables and links from those of others.
	Number  int            `json:"number"`
	Subnets []netip.Prefix `json:"subnets"` // IPv4 first; at most one per family
	// Range has the addresses of pods that choose none, within the IPv4 subnet.
	Range netip.Prefix `json:"range,omitzero"`
	// Internal networks lead nowhere else.
	Internal bool `json:"internal,omitempty"`
	// NoNames: pods do not find each other by name.
	NoNames bool `json:"noNames,omitempty"`
	// Resolvers are asked instead of the uplink's.
	Resolvers []netip.Addr      `json:"resolvers,omitempty"`
	MTU       int               `json:"mtu,omitempty"` // bytes; 0 is that of the uplink
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"` // as they were given
}

// maxNetworks bounds the networks of a node.
const maxNetworks = 256

// CheckName returns an error for what cannot be the name of a network.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	switch {
	case name == "" || len(name) > 63 || strings.Trim(name, letters+"_.-") != "" || strings.TrimLeft(name, "_.-") != name:
		return fmt.Errorf("%w: %q: expected at most 63 letters, digits, '_', '.' and '-', beginning with a letter or digit", ErrBadNetwork, name)
	case slices.Contains(reservedNames, name):
		return fmt.Errorf("%w: the name %s has a meaning of its own", ErrBadNetwork, name)
	}
	return nil
}

// reservedNames are what the commands take for something else.
var reservedNames = []string{Default, "bridge", "default", "host", "none", "private", "container", "ns", "slirp4netns", "pasta"}

// check returns an error for what a network cannot be.
func (c Config) check() error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if _, err := netns.CheckSubnets(c.Subnets); err != nil {
		return fmt.Errorf("%w: %w", ErrBadNetwork, err)
	}
	if c.Range.IsValid() && !slices.ContainsFunc(c.Subnets, func(s netip.Prefix) bool {
		return s.Addr().Is4() && s.Contains(c.Range.Addr()) && s.Bits() <= c.Range.Bits()
	}) {
		return fmt.Errorf("%w: the range %s is no part of an IPv4 subnet of the network", ErrBadNetwork, c.Range)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65520) {
		return fmt.Errorf("%w: MTU %d is not between 1280 and 65520", ErrBadNetwork, c.MTU)
	}
	return nil
}

// Device returns the name of the network's bridge in the node.
func (c Config) Device() string { return fmt.Sprintf("subnet%d", c.Number) }

// table and veth begin the names of what else is the network's alone in the node.
func (c Config) table() string { return fmt.Sprintf("subpod-net%d", c.Number) }
func (c Config) veth() string  { return fmt.Sprintf("n%02x", c.Number) }

// load reads the stored networks. One that cannot be read is left out, with an error.
func load(dir string) ([]Config, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the networks: %w", err)
	}
	var all []Config
	var errs []error
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		var c Config
		if err == nil {
			err = json.Unmarshal(text, &c)
		}
		if err == nil && c.Name != name {
			err = fmt.Errorf("it describes %q", c.Name)
		}
		if err == nil {
			err = c.check()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read network %s: %w", name, err))
			continue
		}
		all = append(all, c)
	}
	return all, errors.Join(errs...)
}

// store writes a network so that it is there after a power cut, or not at all: on an
// error nothing is left of it.
func (c Config) store(dir string) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store network %s: %w", c.Name, err)
	}
	path := filepath.Join(dir, c.Name+".json")
	left := path + ".new"
	f, err := os.OpenFile(left, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(left, path)
	}
	if err == nil {
		left = path
		err = syncDir(dir)
	}
	if err != nil {
		_ = os.Remove(left) // best effort: what is half written is not read
		return fmt.Errorf("store network %s: %w", c.Name, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
