package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
)

// Resolve expands ~, $NAME and ${NAME} in all paths, with env (os.Getenv) for
// the environment; it changes c in place and is idempotent. XDG variables that
// are unset get the defaults of the XDG base directory specification, and
// XDG_RUNTIME_DIR falls back to /run/user/UID when that is the user's own.
//
// The error wraps ErrInvalid and is an *Error that names each key whose path
// uses a variable that has no value, or is not absolute once expanded.
func (c *Config) Resolve(env func(string) string) error {
	var problems []Problem
	walkPaths(reflect.ValueOf(c).Elem(), "", func(key, kind string, v *string) {
		expanded, err := expand(*v, env)
		if err == nil && expanded != "" && !filepath.IsAbs(expanded) &&
			(kind != "command" || strings.Contains(expanded, "/")) {
			err = fmt.Errorf("path %q is not absolute", expanded)
		}
		if err != nil {
			problems = append(problems, c.origins.problem(key, "%v", err))
			return
		}
		if filepath.IsAbs(expanded) {
			expanded = filepath.Clean(expanded)
		}
		*v = expanded
	})
	if len(problems) > 0 {
		return &Error{Problems: problems}
	}
	return nil
}

// walkPaths calls visit for every string below v whose field has a path tag.
func walkPaths(v reflect.Value, key string, visit func(key, kind string, s *string)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		at := key
		if name := f.Tag.Get("toml"); name != "" {
			at = strings.TrimPrefix(key+"."+name, ".")
		}
		walkPath(v.Field(i), at, f.Tag.Get("path"), visit)
	}
}

func walkPath(v reflect.Value, key, kind string, visit func(key, kind string, s *string)) {
	switch v.Kind() {
	case reflect.String:
		if kind != "" {
			s := v.String()
			visit(key, kind, &s)
			v.SetString(s)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walkPath(v.Index(i), key, kind, visit)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			// Values of a map cannot be changed in place.
			e := reflect.New(v.Type().Elem()).Elem()
			e.Set(v.MapIndex(k))
			walkPath(e, key+"."+k.String(), kind, visit)
			v.SetMapIndex(k, e)
		}
	case reflect.Struct:
		if v.Type().PkgPath() == reflect.TypeFor[Config]().PkgPath() && v.Type() != reflect.TypeFor[Duration]() && v.Type() != reflect.TypeFor[Rate]() && v.Type() != reflect.TypeFor[Size]() {
			walkPaths(v, key, visit)
		}
	}
}

// expand replaces a leading ~ and environment variables in s.
func expand(s string, env func(string) string) (string, error) {
	var failed error
	get := func(name string) string {
		v, err := Variable(name, env)
		if err != nil && failed == nil {
			failed = err
		}
		return v
	}
	if s == "~" || strings.HasPrefix(s, "~/") {
		s = "${HOME}" + s[1:]
	}
	s = os.Expand(s, get)
	return s, failed
}

// Variable returns the value of an environment variable or its standard default.
func Variable(name string, env func(string) string) (string, error) {
	if v := env(name); v != "" {
		// "All paths set in these environment variables must be absolute. If
		// … relative … ignore" (XDG base directory specification).
		if !strings.HasPrefix(name, "XDG_") || filepath.IsAbs(v) {
			return v, nil
		}
	}
	below := map[string]string{
		"XDG_CONFIG_HOME": ".config",
		"XDG_DATA_HOME":   ".local/share",
		"XDG_STATE_HOME":  ".local/state",
		"XDG_CACHE_HOME":  ".cache",
	}
	if dir, ok := below[name]; ok {
		home, err := Variable("HOME", env)
		return filepath.Join(home, dir), err
	}
	if name == "XDG_RUNTIME_DIR" {
		dir := "/run/user/" + strconv.Itoa(os.Getuid())
		if st, err := os.Stat(dir); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok && st.IsDir() && int(sys.Uid) == os.Getuid() {
				return dir, nil
			}
		}
		return "", errors.New("XDG_RUNTIME_DIR is not set and " + dir + " does not exist: " +
			"log in as the user itself (not by su or sudo), or run 'loginctl enable-linger', or set it to a directory of mode 0700")
	}
	return "", fmt.Errorf("environment variable %s is not set", name)
}
