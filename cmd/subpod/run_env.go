package main

import (
	"fmt"
	"os"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// environmentOf returns what --env-host, --env-file and -e set, in this order: later ones
// win.
func environmentOf(host bool, files, values []string) ([]*runtimeapi.KeyValue, error) {
	var out []*runtimeapi.KeyValue
	add := func(line, where string) error {
		pairs, err := parseVariable(line)
		if err != nil {
			return usagef("invalid %s: %w", where, err)
		}
		out = append(out, pairs...)
		return nil
	}
	if host {
		for _, v := range os.Environ() {
			if name, value, ok := strings.Cut(v, "="); ok && name != "" {
				out = append(out, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
			}
		}
	}
	for _, name := range files {
		if err := eachLine("--env-file", name, add); err != nil {
			return nil, err
		}
	}
	for _, e := range values {
		if err := add(e, "-e"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseVariable parses NAME=VALUE, NAME for a variable of this command's environment, or
// PREFIX* for all of those that begin so.
func parseVariable(line string) ([]*runtimeapi.KeyValue, error) {
	name, value, given := strings.Cut(line, "=")
	if name == "" || strings.ContainsAny(name, " \t") {
		// The line may be a secret.
		return nil, fmt.Errorf("expected NAME=VALUE, with a NAME without white space")
	}
	if given {
		return []*runtimeapi.KeyValue{{Key: name, Value: []byte(value)}}, nil
	}
	prefix, all := strings.CutSuffix(name, "*")
	if !all {
		value, found := os.LookupEnv(name)
		if !found {
			return nil, nil
		}
		return []*runtimeapi.KeyValue{{Key: name, Value: []byte(value)}}, nil
	}
	var out []*runtimeapi.KeyValue
	for _, v := range os.Environ() {
		if name, value, ok := strings.Cut(v, "="); ok && name != "" && strings.HasPrefix(name, prefix) {
			out = append(out, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
		}
	}
	return out, nil
}

// maxLines bounds a file of variables or labels, in bytes.
const maxLines = 1 << 20

// eachLine calls add for each line of a file as Podman reads it: white space before the
// name goes, that of the value stays; empty lines and those of a comment are skipped.
func eachLine(flag, name string, add func(line, where string) error) error {
	text, err := readFile(name, maxLines)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := add(line, fmt.Sprintf("%s %s, line %d", flag, name, number)); err != nil {
			return err
		}
	}
	return nil
}

func (o *runOptions) fillEnv(ctr *runtimeapi.ContainerConfig, options *api.ContainerOptions) error {
	if term := os.Getenv("TERM"); o.tty && term != "" {
		ctr.Envs = append(ctr.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(term)})
	}
	envs, err := environmentOf(o.envHost, o.envFiles, o.env)
	if err != nil {
		return err
	}
	ctr.Envs = append(ctr.Envs, envs...)
	options.UnsetEnv, options.UnsetAll = o.unsetEnv, o.unsetAll
	return nil
}

// fillLabels sets labels and annotations, which only the ones of our own have a meaning.
func (o *runOptions) fillLabels(ctr *runtimeapi.ContainerConfig) error {
	add := func(into map[string]string, line, where string) error {
		name, value, _ := strings.Cut(line, "=")
		if name == "" {
			return usagef("invalid %s %q: expected NAME=VALUE", where, line)
		}
		if api.Reserved(map[string]string{name: ""}) != "" {
			return usagef("invalid %s %q: %s is set by subpod itself", where, line, name)
		}
		into[name] = value
		return nil
	}
	for _, file := range o.labelFiles {
		err := eachLine("--label-file", file, func(line, where string) error { return add(ctr.Labels, line, where) })
		if err != nil {
			return err
		}
	}
	for _, l := range o.labels {
		if err := add(ctr.Labels, l, "-l"); err != nil {
			return err
		}
	}
	for _, a := range o.annotations {
		if err := add(ctr.Annotations, a, "--annotation"); err != nil {
			return err
		}
	}
	return nil
}
