package kube

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"

	"github.com/subpod/subpod/pkg/ocispec"
)

// TestPaths: this package keeps its own lists so that clients need not carry
// what makes specifications. They are the same.
func TestPaths(t *testing.T) {
	for _, c := range []struct{ own, server []string }{
		{MaskedPaths, ocispec.DefaultMaskedPaths}, {ReadonlyPaths, ocispec.DefaultReadonlyPaths},
	} {
		own, server := slices.Sorted(slices.Values(c.own)), slices.Sorted(slices.Values(c.server))
		if !slices.Equal(own, server) {
			t.Errorf("%q, the server has %q", own, server)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "512m": 512 << 20, "1.5g": 3 << 29, "2GiB": 2 << 30, "10 kb": 10 << 10} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "m", "-1", "1x", "1e3", "9999999999999999t", "1.2.3"} {
		if got, err := ParseBytes(text); !errors.Is(err, ErrQuantity) {
			t.Errorf("%q: %d, %v; want ErrQuantity", text, got, err)
		}
	}
}

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "1", "B": "$(A)"}
	for text, want := range map[string]string{"$(A)": "1", "$$(A)": "$(A)", "$(B)": "$(A)", "$(C) $A $": "$(C) $A $", "x$(A)y": "x1y"} {
		if got := expand(text, known); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

const manifest = `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  hostNetwork: true
  securityContext: {runAsUser: 1000, fsGroup: 2000, seccompProfile: {type: Unconfined}}
  containers:
  - name: a
    image: i
    command: [c, $(V)]
    env: [{name: V, value: v}, {name: L, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}]
    ports: [{containerPort: 80, hostPort: 8080, protocol: UDP}]
    resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: "0.25"}}
    securityContext: {runAsUser: 1, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: e, mountPath: /e, subPath: sub, readOnly: true}]
  - {name: b, image: i, securityContext: {privileged: true}}
  volumes: [{name: e, emptyDir: {}}]
`

func TestConvert(t *testing.T) {
	set, err := Parse(Source{Text: []byte(manifest)})
	if err != nil {
		t.Fatal(err)
	}
	p := set.Pods[0]
	at := Place{UID: "u", Logs: "/logs", Volumes: "/volumes", Disk: "/disk", Memory: "/memory"}
	sandbox := p.Sandbox(at)
	if m := sandbox.PortMappings; len(m) != 1 || m[0].HostPort != 8080 || m[0].Protocol != runtimeapi.Protocol_UDP {
		t.Errorf("ports: %v", m)
	}
	if ns := sandbox.Linux.SecurityContext.NamespaceOptions; ns.Network != runtimeapi.NamespaceMode_NODE || ns.Pid != runtimeapi.NamespaceMode_CONTAINER {
		t.Errorf("namespaces: %v", ns)
	}
	if !sandbox.Linux.SecurityContext.Privileged {
		t.Error("the pod sandbox is not privileged, though a container is")
	}
	a, err := p.Container(&p.Spec.Containers[0], set, at, 2, "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a.Command, []string{"c", "v"}) || a.LogPath != "a/2.log" || string(a.Envs[1].Value) != "x" {
		t.Errorf("container: %v", a)
	}
	if r := a.Linux.Resources; r.CpuQuota != 50_000 || r.CpuShares != 256 || r.MemoryLimitInBytes != 64<<20 {
		t.Errorf("resources: %v", r)
	}
	sec := a.Linux.SecurityContext
	if sec.RunAsUser.Value != 1 || !sec.NoNewPrivs || sec.Seccomp.ProfileType != runtimeapi.SecurityProfile_Unconfined ||
		!slices.Equal(sec.SupplementalGroups, []int64{2000}) || !slices.Equal(sec.Capabilities.DropCapabilities, []string{"ALL"}) ||
		!slices.Equal(sec.MaskedPaths, MaskedPaths) {
		t.Errorf("security: %v", sec)
	}
	// The path in the volume is the server's to resolve.
	if m := a.Mounts[0]; m.HostPath != "/disk/volumes/e" || !m.Readonly || a.Annotations[api.AnnotationSubPaths] != `{"/e":"sub"}` {
		t.Errorf("mount: %v, %v", m, a.Annotations)
	}
	b, err := p.Container(&p.Spec.Containers[1], set, at, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if sec := b.Linux.SecurityContext; !sec.Privileged || sec.MaskedPaths != nil || sec.RunAsUser.Value != 1000 {
		t.Errorf("security of the privileged container: %v", sec)
	}
}

// TestRefused: what is wrong is told by its path.
func TestRefused(t *testing.T) {
	pod := func(spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: " + spec
	}
	for text, want := range map[string]string{
		pod("{containers: [{name: a, image: i, imge: x}]}"):                                                                 `"spec.containers[0].imge"`,
		pod("{containers: [{name: a, image: i}, {name: a, image: i}]}"):                                                     "twice",
		pod("{containers: [{name: a}]}"):                                                                                    "image is missing",
		pod("{containers: [{name: a, image: i, livenessProbe: {}}]}"):                                                       "one of exec, httpGet, tcpSocket and grpc",
		pod("{containers: [{name: a, image: i, livenessProbe: {tcpSocket: {port: web}}}]}"):                                 "has no port",
		pod("{containers: [{name: a, image: i, resources: {limits: {gpu: 1}}}]}"):                                           `"gpu" is not supported`,
		pod("{containers: [{name: a, image: i, resources: {limits: {cpu: lots}}}]}"):                                        "invalid quantity",
		pod("{containers: [{name: a, image: i, env: [{name: x, valueFrom: {fieldRef: {fieldPath: spec.x}}}]}]}"):            "",
		pod("{containers: [{name: a, image: i, env: [{name: x, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}"):          `secret "s" has no key "k"`,
		pod("{terminationGracePeriodSeconds: -1, containers: [{name: a, image: i}]}"):                                       "spec.terminationGracePeriodSeconds",
		pod("{activeDeadlineSeconds: 9999999999, containers: [{name: a, image: i}]}"):                                       "spec.activeDeadlineSeconds",
		pod("{containers: [{name: a, image: i, lifecycle: {preStop: {sleep: {seconds: 9999999999}}}}]}"):                    "lifecycle.preStop.sleep.seconds",
		pod("{containers: [{name: a, image: i, resources: {limits: {cpu: 1E}}}]}"):                                          "resources: cpu",
		pod("{containers: [{name: a, image: i, resources: {limits: {memory: 100E}}}]}"):                                     "resources: memory",
		pod("{containers: [{name: a, image: i}], volumes: [{name: v, emptyDir: {}, secret: {secretName: s}}]}"):             "one of emptyDir",
		"apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: p}":                                                         "already set",
		"apiVersion: batch/v1\nkind: Jop\nmetadata: {name: p}":                                                              `there is no "Jop"`,
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {}":                                                                     "metadata.name is missing",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 1000, template: {spec: {}}}":          "spec.replicas",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchLabels: {a: b}}, template: {}}": "no label a=b",
		"": "empty",
	} {
		_, err := Parse(Source{Text: []byte(text)})
		if want == "" {
			continue // told when the container is made
		}
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v; want ErrManifest with %s", text, err, want)
		}
	}
}

// TestSubPath checks which sub paths are accepted, and what becomes of variables.
func TestSubPath(t *testing.T) {
	for mount, want := range map[string]string{
		"subPath: a/b":                    `{"/m":"a/b"}`,
		`subPathExpr: "$(A)/$(B)-$$(A)"`:  `{"/m":"1/two-$(A)"}`,
		"subPath: ../x":                   "error: leads out",
		"subPath: a/../../x":              "error: leads out",
		"subPath: /etc":                   "error: leads out",
		`subPathExpr: "$(UP)/x"`:          "error: leads out",
		`subPathExpr: "$(ROOT)"`:          "error: leads out",
		`subPathExpr: "$(NONE)"`:          "error: no variable $(NONE)",
		"{subPath: a, subPathExpr: b}":    "error: exclude each other",
		"subPath: none, name: conf":       "error: not in volume conf",
		"subPath: key, name: conf":        `{"/m":"key"}`,
		"subPath: ../outside, name: conf": "error: leads out",
	} {
		mount = strings.Trim(mount, "{}")
		if !strings.Contains(mount, "name:") {
			mount += ", name: v"
		}
		text := `
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: a
    image: i
    env: [{name: A, value: "1"}, {name: B, value: two}, {name: UP, value: ..}, {name: ROOT, value: /etc}]
    volumeMounts: [{mountPath: /m, ` + mount + `}]
  volumes: [{name: v, emptyDir: {}}, {name: conf, configMap: {name: c}}]
`
		got, err := subPaths(t, text)
		if err != nil {
			got = "error: " + err.Error()
		}
		if msg, isErr := strings.CutPrefix(want, "error: "); isErr {
			if !errors.Is(err, ErrManifest) || !strings.Contains(got, msg) {
				t.Errorf("%s: %s; want ErrManifest with %q", mount, got, msg)
			}
		} else if got != want {
			t.Errorf("%s: %s; want %s", mount, got, want)
		}
	}
}

// subPaths returns the annotation of the only container of a manifest.
func subPaths(t *testing.T, text string) (string, error) {
	set, err := Parse(Source{Text: []byte(text)})
	if err != nil {
		return "", err
	}
	dir := t.TempDir()
	at := Place{Disk: dir + "/d", Memory: dir + "/m"}
	p := set.Pods[0]
	if err := p.Prepare(set, at); err != nil {
		return "", err
	}
	c, err := p.Container(&p.Spec.Containers[0], set, at, 0, "")
	return c.GetAnnotations()[api.AnnotationSubPaths], err
}

// TestImpliedEmptyDir: a volume without a source is an emptyDir (core/v1 VolumeSource), most
// often one with nothing after "emptyDir:".
func TestImpliedEmptyDir(t *testing.T) {
	for _, source := range []string{"", "emptyDir:", "emptyDir: null", "ephemeral: {}"} {
		set, err := Parse(text("apiVersion: v1", "kind: Pod", "metadata: {name: p}", "spec:",
			"  containers: [{name: a, image: i, volumeMounts: [{name: v, mountPath: /v}]}]", "  volumes:", "  - name: v", "    "+source))
		if err != nil {
			t.Errorf("%q: %v", source, err)
			continue
		}
		dir := t.TempDir()
		if err := set.Pods[0].Prepare(set, Place{Disk: dir}); err != nil {
			t.Errorf("%q: %v", source, err)
		}
		if st, err := os.Stat(filepath.Join(dir, "volumes/v")); err != nil || st.Mode().Perm() != 0o777 {
			t.Errorf("%q: %v, %v; want a directory that all may write to", source, st, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	set, err := Parse(Source{Text: []byte(`
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: secret}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers: [{name: a, image: i}]
  volumes: [{name: v, secret: {secretName: s, items: [{key: k, path: ../../out}]}}]
`)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := set.Pods[0].Prepare(set, Place{Disk: dir + "/d", Memory: dir + "/m"}); !errors.Is(err, ErrManifest) {
		t.Errorf("a path that leads out of its volume: %v", err)
	}
}
