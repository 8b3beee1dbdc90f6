package kube

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxText and maxEnvironment bound the bytes of a variable, and of all of a container: the
// kernel takes no more (MAX_ARG_STRLEN, and three quarters of _STK_LIM).
const maxText, maxEnvironment = 128 << 10, 6 << 20

// environment returns the environment variables of a container, in order; field
// returns the value of a fieldRef.
func (c *Container) environment(s *Set, field func(path string) (string, error)) ([]*runtimeapi.KeyValue, error) {
	var out []*runtimeapi.KeyValue
	known, at, size := map[string]string{}, map[string]int{}, 0
	set := func(name, value string) error {
		if size += len(value); len(value) >= maxText || size > maxEnvironment {
			return fmt.Errorf("%s: its %d bytes are more than a program can be given (%d, all variables %d)", name, len(value), maxText, maxEnvironment)
		}
		if i, again := at[name]; again {
			out[i] = nil
		}
		known[name], at[name] = value, len(out)
		out = append(out, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
		return nil
	}
	for _, from := range c.EnvFrom {
		data, err := from.data(s)
		if err != nil {
			return nil, err
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			if err := set(from.Prefix+k, data[k]); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range c.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			return nil, fmt.Errorf("%q is not a valid name of a variable", e.Name)
		}
		value, ok, err := expand(e.Value, known), true, error(nil)
		if e.ValueFrom != nil {
			value, ok, err = e.from(c, s, field)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		if !ok {
			continue
		}
		if err := set(e.Name, value); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(out, func(kv *runtimeapi.KeyValue) bool { return kv == nil }), nil
}

// secretVariables returns the names of variables whose values come from secrets, or have such
// a value in them.
func (c *Container) secretVariables(s *Set) (names []string) {
	for _, f := range c.EnvFrom {
		if f.SecretRef != nil {
			for _, k := range slices.Sorted(maps.Keys(s.Secrets[f.SecretRef.Name].content())) {
				names = append(names, f.Prefix+k)
			}
		}
	}
	for _, e := range c.Env {
		has := func(name string) bool { return strings.Contains(e.Value, "$("+name+")") }
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil || e.ValueFrom == nil && slices.ContainsFunc(names, has) {
			names = append(names, e.Name)
		}
	}
	return names
}

func (f *EnvFrom) data(s *Set) (map[string]string, error) {
	switch {
	case f.ConfigMapRef != nil && f.SecretRef == nil:
		cm := s.ConfigMaps[f.ConfigMapRef.Name]
		if cm == nil && !f.ConfigMapRef.Optional {
			return nil, fmt.Errorf("configMap %q is not in the manifest", f.ConfigMapRef.Name)
		}
		if cm == nil {
			return nil, nil
		}
		return cm.Data, nil
	case f.SecretRef != nil && f.ConfigMapRef == nil:
		secret := s.Secrets[f.SecretRef.Name]
		if secret == nil && !f.SecretRef.Optional {
			return nil, fmt.Errorf("secret %q is not in the manifest", f.SecretRef.Name)
		}
		out := map[string]string{}
		for k, v := range secret.content() {
			out[k] = string(v)
		}
		return out, nil
	}
	return nil, fmt.Errorf("envFrom: one of configMapRef and secretRef must be set")
}

func (e *EnvVar) from(c *Container, s *Set, field func(string) (string, error)) (value string, ok bool, err error) {
	from := e.ValueFrom
	switch {
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		if cm := s.ConfigMaps[ref.Name]; cm != nil {
			value, ok = cm.Data[ref.Key]
		}
		if !ok && !ref.Optional {
			return "", false, fmt.Errorf("configMap %q has no key %q in the manifest", ref.Name, ref.Key)
		}
		return value, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, ok := s.Secrets[ref.Name].content()[ref.Key]
		if !ok && !ref.Optional {
			return "", false, fmt.Errorf("secret %q has no key %q in the manifest", ref.Name, ref.Key)
		}
		return string(data), ok, nil
	case from.FieldRef != nil:
		value, err := field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err := from.ResourceFieldRef.value(c)
		return value, true, err
	}
	return "", false, fmt.Errorf("valueFrom: one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef must be set")
}

// content returns the data of a secret, nil if s is nil.
func (s *Secret) content() map[string][]byte {
	if s == nil {
		return nil
	}
	out := maps.Clone(s.Data)
	if out == nil {
		out = map[string][]byte{}
	}
	for k, v := range s.StringData {
		out[k] = []byte(v)
	}
	return out
}

// content returns the data of a configMap, nil if c is nil.
func (c *ConfigMap) content() map[string][]byte {
	if c == nil {
		return nil
	}
	out := map[string][]byte{}
	for k, text := range c.Data {
		out[k] = []byte(text)
	}
	maps.Copy(out, c.BinaryData)
	return out
}

var reference = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\$\$|\$\([-._a-zA-Z][-._a-zA-Z0-9]*\)`)
})

// expand replaces $(NAME) with known values and $$ with $, as specified for
// EnvVar.value and Container.command. It ends once that is longer than maxText: variables
// that double each other a few times are more than any machine can hold.
func expand(s string, known map[string]string) string {
	size := 0
	return reference().ReplaceAllStringFunc(s, func(m string) string {
		if m == "$$" {
			return "$"
		}
		if v, ok := known[m[2:len(m)-1]]; ok && size < maxText {
			size += len(v)
			return v
		}
		return m
	})
}

func expandAll(list []string, envs []*runtimeapi.KeyValue) []string {
	known := make(map[string]string, len(envs))
	for _, kv := range envs {
		known[kv.Key] = string(kv.Value)
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, known)
	}
	return out
}
