package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sync/singleflight"
)

// confCache keeps the configuration that was read last, until its files change.
type confCache struct {
	checks singleflight.Group // by fingerprint

	mu    sync.Mutex // never held while check runs
	print string     // fingerprint of the files that list was made from
	list  *libcni.NetworkConfigList
}

// load returns the network that the directories configure. check runs once for each
// new configuration, and again next time for one that it rejected. Callers that come
// meanwhile wait for its answer until their ctx ends; the check goes on without them.
func (c *confCache) load(ctx context.Context, dirs []string, skip func(string) bool, check func(context.Context, *libcni.NetworkConfigList) error) (*libcni.NetworkConfigList, error) {
	file, err := findConf(dirs, skip)
	if err != nil {
		return nil, err
	}
	if file == "" {
		return nil, fmt.Errorf("no network configuration (*.conflist, *.conf, *.json) in %s", strings.Join(dirs, ", "))
	}
	print, err := fingerprint(file)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	list, known := c.list, c.list != nil && c.print == print
	c.mu.Unlock()
	if known {
		return list, nil
	}
	answer := c.checks.DoChan(print, func() (any, error) {
		list, err := readConf(file)
		if err == nil {
			err = check(context.WithoutCancel(ctx), list)
		}
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.list, c.print = list, print
		return list, nil
	})
	select {
	case r := <-answer:
		if r.Err != nil {
			return nil, fmt.Errorf("configuration %s: %w", file, r.Err)
		}
		return r.Val.(*libcni.NetworkConfigList), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("configuration %s: wait for the plugins' versions: %w", file, ctx.Err())
	}
}

// findConf returns the file that counts, "" when there is none.
func findConf(dirs []string, skip func(string) bool) (string, error) {
	for _, dir := range dirs {
		files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
		if err != nil {
			return "", fmt.Errorf("look for network configuration: %w", err)
		}
		if skip != nil {
			files = slices.DeleteFunc(files, skip)
		}
		if len(files) > 0 {
			return slices.Min(files), nil
		}
	}
	return "", nil
}

// fingerprint changes when the file does, or the directory of the same name as a
// network, from which more plugins are read (CNI 1.1).
func fingerprint(file string) (string, error) {
	var all strings.Builder
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	add := func(name string, st fs.FileInfo) {
		fmt.Fprintln(&all, name, st.Size(), st.ModTime().UnixNano(), st.Mode())
	}
	add(file, st)
	more, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*", "*.conf"))
	for _, f := range more {
		if st, err := os.Stat(f); err == nil {
			add(f, st)
		}
	}
	return all.String(), nil
}

// readConf reads a list of plugins, or one plugin as a list of its own. The
// Bytes of what it returns hold all of it, also what came from other files.
func readConf(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) != ".conflist" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		return listOf(data)
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		return nil, err
	}
	if list.Name == "" || len(list.Plugins) == 0 {
		return nil, errors.New("it names no network or no plugins")
	}
	return list, inline(list)
}

// listOf returns a list that consists of one plugin's configuration, and has its name
// and version.
func listOf(plugin []byte) (*libcni.NetworkConfigList, error) {
	one, err := libcni.NetworkPluginConfFromBytes(plugin)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{
		"name": one.Network.Name, "cniVersion": one.Network.CNIVersion, "plugins": []json.RawMessage{plugin},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(text)
}

// inline writes the plugins into the list's own JSON.
func inline(list *libcni.NetworkConfigList) error {
	var text map[string]any
	if err := json.Unmarshal(list.Bytes, &text); err != nil {
		return err
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	text["plugins"], text["loadOnlyInlinedPlugins"] = plugins, true
	var err error
	list.Bytes, err = json.Marshal(text)
	return err
}

// capable reports whether a plugin of the list takes the capability.
func capable(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool {
		return p.Network.Capabilities[capability]
	})
}
