package cni

import (
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
)

// confCache keeps the configuration that was read last, until its files change.
type confCache struct {
	mu    sync.Mutex
	print string // fingerprint of the files that list was made from
	list  *libcni.NetworkConfigList
}

// load returns the network that the directories configure. check is asked once
// for each new configuration; one that it refuses is looked at again next time.
func (c *confCache) load(dirs []string, skip func(string) bool, check func(*libcni.NetworkConfigList) error) (*libcni.NetworkConfigList, error) {
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
	defer c.mu.Unlock()
	if c.list != nil && c.print == print {
		return c.list, nil
	}
	c.list = nil
	list, err := readConf(file)
	if err == nil {
		err = check(list)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	c.list, c.print = list, print
	return list, nil
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
		one, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, err
		}
		return libcni.ConfListFromConf(one)
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		return nil, err
	}
	if list.Name == "" || len(list.Plugins) == 0 {
		return nil, errors.New("it names no network or no plugins")
	}
	return list, whole(list)
}

// whole writes the plugins into the list's own JSON.
func whole(list *libcni.NetworkConfigList) error {
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
