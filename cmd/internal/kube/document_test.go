package kube

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func text(lines ...string) Source {
	return Source{Name: "f.yaml", Text: []byte(strings.Join(lines, "\n"))}
}

// TestLegalYAML: what a configMap holds of YAML that is unusual and legal.
func TestLegalYAML(t *testing.T) {
	head := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"
	for name, c := range map[string]struct{ text, want string }{
		"merge, overridden before":     {"immutable: true\ndata:\n  <<: &b {a: one, b: two}\n  a: own", "a=own b=two"},
		"merge, overridden after":      {"data:\n  a: own\n  <<: {a: one, b: two}", "a=own b=two"},
		"merge of several":             {"data:\n  <<: [{a: first}, {a: second, b: two}]", "a=first b=two"},
		"merge of a merge":             {"data: {<<: {<<: {a: deep, b: deep}, b: two}}", "a=deep b=two"},
		"anchor of a scalar":           {"metadata: {name: c, labels: {x: &v value}}\ndata: {a: *v, b: two}", "a=value b=two"},
		"block scalars":                {"data:\n  a: |-\n    one\n  b: >-\n    t\n    w", "a=one b=t w"},
		"quoted words of YAML 1.1":     {"data: {a: 'yes', b: \"off\"}", "a=yes b=off"},
		"keys that are no text":        {"data: {1: one, a: x, b: y, true: z}", "a=x b=y"},
		"letters that stand for words": {"data: {a: y, b: n}", "a=y b=n"},
		"tags":                         {"data: {a: !!str 1, b: !!str true}", "a=1 b=true"},
		"dates":                        {"data: {a: 2026-01-02, b: x}", "a=2026-01-02 b=x"},
		"carriage returns":             {"data:\r\n  a: one\r\n  b: two\r\n...\r\n---\r\n", "a=one b=two"},
		"a mark and an end":            {"data: {a: one, b: two}\n...\n# comment\n---\n---\n...\n", "a=one b=two"},
	} {
		all := head + c.text
		if strings.HasPrefix(c.text, "metadata") {
			all = "apiVersion: v1\nkind: ConfigMap\n" + c.text
		}
		for _, mark := range []string{"", "\ufeff", "\ufeff---\n", "%YAML 1.1\n---\n"} {
			set, err := Parse(Source{Text: []byte(mark + all)})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			data := set.ConfigMaps["default/c"].Data
			if got := fmt.Sprintf("a=%s b=%s", data["a"], data["b"]); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
	}
}

// TestNumbers: modes are octal as they are written, booleans are those of YAML 1.1.
func TestNumbers(t *testing.T) {
	set, err := Parse(text(
		"apiVersion: v1", "kind: Pod", "metadata: {name: p}", "spec:", "  hostNetwork: yes", "  hostPID: off",
		"  terminationGracePeriodSeconds: 0x10", "  activeDeadlineSeconds: 1_000",
		"  containers: [{name: a, image: i, resources: {limits: {cpu: .5, memory: 1e6}}}]",
		"  volumes: [{name: v, secret: {secretName: s, optional: on, defaultMode: 0400, items: [{key: k, path: k, mode: 0o444}]}}]"))
	if err != nil {
		t.Fatal(err)
	}
	spec := set.Pods[0].Spec
	secret := spec.Volumes[0].Secret
	if !spec.HostNetwork || spec.HostPID || *spec.TerminationGracePeriodSeconds != 16 || *spec.ActiveDeadlineSeconds != 1000 ||
		!secret.Optional || *secret.DefaultMode != 0o400 || *secret.Items[0].Mode != 0o444 {
		t.Errorf("%+v, %+v", spec, secret)
	}
	if c := spec.Containers[0].Resources.Limits; c["cpu"] != 0.5 || c["memory"] != 1e6 {
		t.Errorf("%v", c)
	}
}

// TestPlaces: each problem is told with its file, document and line.
func TestPlaces(t *testing.T) {
	pod := []string{"---", "---", "apiVersion: v1", "kind: Pod", "metadata:", "  name: p", "  labels: {app.kubernetes.io/name: x}", "spec:", "  containers:", "  - name: a"}
	for want, lines := range map[string][]string{
		`f.yaml:12 (document 2): Pod p: unknown field "spec.containers[0].imag"`:           append(pod, "    image: i", "    imag: i"),
		`f.yaml:13 (document 2): Pod p: spec.containers[0] (a).ports[0]: a port`:           append(pod, "    image: i", "    ports:", "    - containerPort: 0"),
		`f.yaml:12 (document 2): Pod p: spec.containers.tty: string where a value of type`: append(pod, "    image: i", "    tty: maybe"),
		`f.yaml:12 (document 2): key "image" is already set on line 11`:                    append(pod, "    image: i", "    image: j"),
		`f.yaml:10 (document 2): Pod p: spec.containers[0] (a).image is missing`:           pod,
		`f.yaml:11 (document 2): tag !secret is not supported`:                             append(pod, "    image: !secret x"),
		`f.yaml:11 (document 2): ".inf" is not a number that JSON has`:                     append(pod, "    image: .inf"),
		`f.yaml:1 (document 1): no object`:                                                 {"just text"},
		`f.yaml:2 (document 1): p: apiVersion and kind: both are required`:                 {"", "metadata: {name: p}"},
		`f.yaml:3 (document 1): Pod p: spec.containers: at least one`:                      {"apiVersion: v1", "items:", "- {apiVersion: v1, kind: Pod, metadata: {name: p}}", "kind: List"},
		`f.yaml:4 (document 1): List: items: Lists are nested more than 3 deep`:            {"kind: List", "apiVersion: v1", "items: [{kind: List, apiVersion: v1, items: [{kind: List, apiVersion: v1, items: [", "{kind: List, apiVersion: v1, items: []}]}]}]"},
		`f.yaml:3 (document 1): List: items: a List has`:                                   {"kind: List", "apiVersion: v1", "items: {}"},
		`f.yaml:3 (document 1): Service s: spec.type: ExternalName`:                        {"kind: Service", "apiVersion: v1", "spec: {type: ExternalName}", "metadata: {name: s}"},
		`f.yaml:5 (document 2): ConfigMap a: metadata.name: another one has the same name`: {"{kind: ConfigMap, apiVersion: v1, metadata: {name: a}}", "---", "kind: ConfigMap", "apiVersion: v1", "metadata: {name: a}"},
	} {
		if _, err := Parse(text(lines...)); !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

// TestHostileYAML: what would become too large, or never ends, is refused in no time.
func TestHostileYAML(t *testing.T) {
	merges, lists := []string{"a0: &a0 {k: v}"}, []string{"l0: &l0 [x, x]"}
	for i := 1; i < 60; i++ {
		merges = append(merges, fmt.Sprintf("a%d: &a%d {<<: [*a%d, *a%d]}", i, i, i-1, i-1))
		lists = append(lists, fmt.Sprintf("l%d: &l%d [*l%d, *l%d]", i, i, i-1, i-1))
	}
	long := "a: &a " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*a, ", 1000) + "]"
	items := "kind: List\napiVersion: v1\nx: &p " + strings.Repeat("y", 1<<20) + "\nitems: [" + strings.Repeat("{a: *p}, ", 1000) + "]"
	for want, texts := range map[string][]string{
		"once aliases are resolved": {strings.Join(merges, "\n"), strings.Join(lists, "\n"), long, items},
		"nested more than 200 deep": {
			"a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "a: " + strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000),
			"a: &a {<<: *a}", "a: &a [*a]", "&a {<<: [*a]}", "kind: List\napiVersion: v1\nitems: &i [{items: *i}]",
		},
		"YAML: ":      {"a: " + strings.Repeat("[", 100000), strings.Repeat("- ", 100000) + "x"},
		"larger than": {strings.Repeat("# comment\n", MaxManifest/10+1)},
	} {
		for i, hostile := range texts {
			began := time.Now()
			_, err := Parse(Source{Text: []byte(hostile)})
			if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %d: %.200v", want, i, err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("%s %d took %v", want, i, took)
			}
		}
	}
}

// FuzzParse: whatever is read ends, in a set or in ErrManifest.
func FuzzParse(f *testing.F) {
	f.Add([]byte(manifest))
	f.Add([]byte(serviceManifest))
	f.Add([]byte("a: &a [*a]\nb: {<<: *a}"))
	f.Add([]byte("kind: List\napiVersion: v1\nitems: [{kind: Job, apiVersion: batch/v1, metadata: {name: j}, spec: {completions: 3}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := Parse(Source{Name: "f", Text: text})
		if err == nil {
			set.Notes()
			set.HostPorts()
			for _, p := range set.Pods {
				_, _, _ = p.Workload(set, Place{})
				p.Sandbox(Place{})
			}
		} else if !errors.Is(err, ErrManifest) {
			t.Errorf("%v", err)
		}
	})
}

// TestEnvironmentBound: variables whose values stand for more than a program can be given are
// refused, before they are made, and so are too many of them; those that are there twice have
// the last value.
func TestEnvironmentBound(t *testing.T) {
	pod := func(env string) error {
		_, err := Parse(Source{Text: []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, env: [" + env + "]}]}")})
		return err
	}
	doubled := "{name: A0, value: xxxxxxxxxxxxxxxx}"
	for i := range 60 {
		doubled += fmt.Sprintf(", {name: A%d, value: $(A%d)$(A%d)}", i+1, i, i)
	}
	many := "{name: A, value: " + strings.Repeat("x", maxText/2) + "}"
	for i := range 1000 {
		many += fmt.Sprintf(", {name: A%d, value: $(A)}", i)
	}
	for what, env := range map[string]string{
		"doubled":  doubled,
		"repeated": "{name: A, value: " + strings.Repeat("x", maxText/2) + "}, {name: B, value: " + strings.Repeat("$(A)", 100000) + "}",
		"many":     many,
	} {
		if err := pod(env); !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), "more than a program can be given") || len(err.Error()) > 1000 {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := Container{Env: []EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)"}, {Name: "A", Value: "2"}}}
	envs, err := c.environment(&Set{}, nil)
	if err != nil || len(envs) != 2 || envs[0].Key != "B" || string(envs[0].Value) != "1" || string(envs[1].Value) != "2" {
		t.Errorf("%v, %v", envs, err)
	}
}
