package kube

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/subpath"
)

// ErrManifest reports that a manifest is invalid or uses an unsupported feature. The
// message names the object and the field.
var ErrManifest = errors.New("manifest")

// Set contains the objects of the manifests.
type Set struct {
	Pods       []*Pod // including those of Deployments
	ConfigMaps map[string]*ConfigMap
	Secrets    map[string]*Secret
	Claims     map[string]*Claim
	Services   []*Service
}

// MaxManifest bounds the size of what Parse reads, in bytes.
const MaxManifest = 16 << 20

// Parse parses YAML or JSON documents. Unknown kinds, unknown fields and unsupported
// values are rejected: ErrManifest, with all problems at once.
func Parse(r io.Reader) (*Set, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if len(text) > MaxManifest {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrManifest, MaxManifest)
	}
	s := &Set{ConfigMaps: map[string]*ConfigMap{}, Secrets: map[string]*Secret{}, Claims: map[string]*Claim{}}
	var errs []error
	docs := documents(text)
	for i, doc := range docs {
		if err := s.add(doc); err != nil {
			errs = append(errs, fmt.Errorf("%w: document %d: %w", ErrManifest, i+1, err))
		}
	}
	if len(docs) == 0 {
		errs = append(errs, fmt.Errorf("%w: the manifest is empty; it must contain at least one object", ErrManifest))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, s.check()
}

// documents splits YAML at its document markers and drops empty documents.
func documents(text []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	flush := func() {
		var v any
		if err := yaml.Unmarshal(doc, &v); err != nil || v != nil {
			docs = append(docs, doc)
		}
		doc = nil
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, MaxManifest+1)
	for lines.Scan() {
		line := lines.Bytes()
		if bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || line[3] == ' ' || line[3] == '\t') {
			flush()
			continue
		}
		doc = append(append(doc, line...), '\n')
	}
	flush()
	return docs
}

func (s *Set) add(doc []byte) error {
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   Meta   `json:"metadata"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return err
	}
	name := head.Kind + " " + head.Metadata.Name
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if head.Metadata.Name == "" && head.Kind != "" {
		return fmt.Errorf("%s: metadata.name is missing", head.Kind)
	}
	switch head.APIVersion + " " + head.Kind {
	case "v1 Pod":
		p := &Pod{}
		err = decode(text, p)
		s.Pods = append(s.Pods, p)
	case "apps/v1 Deployment":
		d := &Deployment{}
		if err = decode(text, d); err == nil {
			err = s.addDeployment(d)
		}
	case "v1 ConfigMap":
		c := &ConfigMap{}
		err = decode(text, c)
		s.ConfigMaps[head.Metadata.Name] = c
	case "v1 Secret":
		c := &Secret{}
		err = decode(text, c)
		s.Secrets[head.Metadata.Name] = c
	case "v1 PersistentVolumeClaim":
		c := &Claim{}
		err = decode(text, c)
		s.Claims[head.Metadata.Name] = c
	case "v1 Service":
		c := &Service{}
		err = decode(text, c)
		s.Services = append(s.Services, c)
	default:
		return fmt.Errorf("kind %q of %q is not supported; supported kinds: Pod, Deployment, Service, ConfigMap, Secret, PersistentVolumeClaim", head.Kind, head.APIVersion)
	}
	return wrap(err)
}

// decode rejects unknown fields and names their paths.
func decode(text []byte, into any) error {
	strict, err := strictjson.UnmarshalStrict(text, into)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range strict {
		errs = append(errs, fmt.Errorf("%w (misspelt, or not supported)", e))
	}
	return errors.Join(errs...)
}

// addDeployment adds a pod for each replica.
func (s *Set) addDeployment(d *Deployment) error {
	replicas := int32(1)
	if d.Spec.Replicas != nil {
		replicas = *d.Spec.Replicas
	}
	if replicas < 0 || replicas > 100 {
		return fmt.Errorf("spec.replicas: %d is not between 0 and 100", replicas)
	}
	if p := d.Spec.Template.Spec.RestartPolicy; p != "" && p != "Always" {
		return fmt.Errorf("spec.template.spec.restartPolicy: %s; a Deployment's is Always", p)
	}
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Metadata.Labels[k] != v {
			return fmt.Errorf("spec.selector.matchLabels: the template has no label %s=%s", k, v)
		}
	}
	for i := range replicas {
		meta := d.Spec.Template.Metadata
		meta.Name, meta.Namespace = fmt.Sprintf("%s-%d", d.Metadata.Name, i), d.Metadata.Namespace
		s.Pods = append(s.Pods, &Pod{Kind: "Pod", Metadata: meta, Spec: d.Spec.Template.Spec})
	}
	return nil
}

// isDNSName reports whether s is a DNS name of at most 63 characters: lower-case
// letters and digits, with dots and hyphens in between.
func isDNSName(s string) bool {
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" && strings.Trim(s, "-.") == s && s != ""
}

func (s *Set) check() error {
	var errs []error
	seen := map[string]bool{}
	for _, p := range s.Pods {
		if p.Metadata.Namespace == "" {
			p.Metadata.Namespace = "default"
		}
		key := p.Metadata.Namespace + "/" + p.Metadata.Name
		if seen[key] {
			errs = append(errs, fmt.Errorf("%w: more than one pod is named %s", ErrManifest, key))
		}
		seen[key] = true
		for _, problem := range p.problems(s) {
			errs = append(errs, fmt.Errorf("%w: pod %s: %s", ErrManifest, p.Metadata.Name, problem))
		}
	}
	errs = append(errs, s.addServices()...)
	return errors.Join(errs...)
}

// problems describes what is invalid in a pod, by field.
func (p *Pod) problems(s *Set) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !isDNSName(p.Metadata.Name) {
		bad("metadata.name: %q is not a DNS name in lower case", p.Metadata.Name)
	}
	if key := api.Reserved(p.Metadata.Labels, p.Metadata.Annotations); key != "" {
		bad("metadata: %s is reserved for subpod's own commands", key)
	}
	spec := &p.Spec
	if len(spec.Containers) == 0 {
		bad("spec.containers: at least one container is required")
	}
	switch spec.RestartPolicy {
	case "":
		spec.RestartPolicy = "Always"
	case "Always", "OnFailure", "Never":
	default:
		bad("spec.restartPolicy: %q is not Always, OnFailure or Never", spec.RestartPolicy)
	}
	switch spec.DNSPolicy {
	case "", "Default", "ClusterFirst", "ClusterFirstWithHostNet", "None":
	default:
		bad("spec.dnsPolicy: unknown policy %q", spec.DNSPolicy)
	}
	if spec.HostNetwork && spec.ShareProcessNamespace && spec.HostPID {
		bad("spec.hostPID and spec.shareProcessNamespace exclude each other")
	}
	if p.OwnUsers() && (spec.HostNetwork || spec.HostPID || spec.HostIPC) {
		bad("spec.hostUsers: false excludes hostNetwork, hostPID and hostIPC")
	}
	p.timeProblems(bad)
	volumes := map[string]bool{}
	for i, v := range spec.Volumes {
		if volumes[v.Name] {
			bad("spec.volumes[%d].name: %q is used twice", i, v.Name)
		}
		volumes[v.Name] = true
		if problem := v.problem(s); problem != "" {
			bad("spec.volumes[%d] (%s): %s", i, v.Name, problem)
		}
	}
	names := map[string]bool{}
	for kind, list := range map[string][]Container{"initContainers": spec.InitContainers, "containers": spec.Containers} {
		for i := range list {
			c := &list[i]
			at := fmt.Sprintf("spec.%s[%d] (%s)", kind, i, c.Name)
			if names[c.Name] {
				bad("%s: the name is used twice", at)
			}
			names[c.Name] = true
			for _, problem := range c.problems(s, volumes, kind == "initContainers") {
				bad("%s%s", at, problem)
			}
		}
	}
	return out
}

// timeProblems describes times that are negative or longer than the API allows.
func (p *Pod) timeProblems(bad func(format string, args ...any)) {
	check := func(field string, seconds *int64) {
		if seconds != nil && (*seconds < 0 || *seconds > math.MaxInt32) {
			bad("%s: %d is not between 0 and %d seconds", field, *seconds, math.MaxInt32)
		}
	}
	check("spec.terminationGracePeriodSeconds", p.Spec.TerminationGracePeriodSeconds)
	check("spec.activeDeadlineSeconds", p.Spec.ActiveDeadlineSeconds)
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			if c.Lifecycle == nil {
				continue
			}
			for name, h := range map[string]*Hook{"postStart": c.Lifecycle.PostStart, "preStop": c.Lifecycle.PreStop} {
				if h != nil && h.Sleep != nil {
					check("container "+c.Name+": lifecycle."+name+".sleep.seconds", &h.Sleep.Seconds)
				}
			}
		}
	}
}

func (v *Volume) problem(s *Set) string {
	sources := 0
	for _, set := range []bool{v.EmptyDir != nil, v.HostPath != nil, v.ConfigMap != nil, v.Secret != nil, v.PersistentVolumeClaim != nil, v.Image != nil, v.DownwardAPI != nil, v.Projected != nil} {
		if set {
			sources++
		}
	}
	switch {
	case !isDNSName(v.Name):
		return "the name is not a DNS name in lower case"
	case sources != 1:
		return "one of emptyDir, hostPath, configMap, secret, persistentVolumeClaim, image, downwardAPI and projected must be set"
	case v.EmptyDir != nil && v.EmptyDir.Medium != "" && v.EmptyDir.Medium != "Memory":
		return "emptyDir.medium: " + v.EmptyDir.Medium + " is not supported"
	case v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && (*v.EmptyDir.SizeLimit < 0 || *v.EmptyDir.SizeLimit > math.MaxInt64/2):
		return "emptyDir.sizeLimit is no size that a volume can have"
	case v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && *v.EmptyDir.SizeLimit > 0 && !v.inMemory():
		return "emptyDir.sizeLimit cannot be enforced on disk: leave it out, or set medium: Memory"
	case v.HostPath != nil && !strings.HasPrefix(v.HostPath.Path, "/"):
		return "hostPath.path must be absolute"
	case v.ConfigMap != nil:
		return s.lacks("configMap", v.ConfigMap.Name, v.ConfigMap.Optional)
	case v.Secret != nil:
		return s.lacks("secret", v.Secret.SecretName, v.Secret.Optional)
	case v.DownwardAPI != nil:
		return fileProblem(v.DownwardAPI.Items)
	case v.Projected != nil:
		for i, src := range v.Projected.Sources {
			if problem := src.problem(s); problem != "" {
				return fmt.Sprintf("projected.sources[%d]: %s", i, problem)
			}
		}
	case v.PersistentVolumeClaim != nil && !isDNSName(v.PersistentVolumeClaim.ClaimName):
		return "persistentVolumeClaim.claimName is not a DNS name in lower case"
	}
	return ""
}

// lacks describes a configMap or secret that is missing; "" if it exists.
func (s *Set) lacks(kind, name string, optional bool) string {
	there := s.Secrets[name] != nil
	if kind == "configMap" {
		there = s.ConfigMaps[name] != nil
	}
	if there || optional {
		return ""
	}
	return fmt.Sprintf("%s %q is not in the manifest", kind, name)
}

func (p *Projection) problem(s *Set) string {
	switch {
	case p.ConfigMap != nil && p.Secret == nil && p.DownwardAPI == nil:
		return s.lacks("configMap", p.ConfigMap.Name, p.ConfigMap.Optional)
	case p.Secret != nil && p.ConfigMap == nil && p.DownwardAPI == nil:
		return s.lacks("secret", p.Secret.Name, p.Secret.Optional)
	case p.DownwardAPI != nil && p.ConfigMap == nil && p.Secret == nil:
		return fileProblem(p.DownwardAPI.Items)
	}
	return "one of configMap, secret and downwardAPI must be set"
}

func fileProblem(files []DownwardFile) string {
	for i, f := range files {
		if f.FieldRef == nil {
			return fmt.Sprintf("items[%d] has no fieldRef", i)
		}
		if _, err := (&Pod{}).fileField(f.FieldRef.FieldPath, ""); err != nil {
			return fmt.Sprintf("items[%d]: %v", i, err)
		}
	}
	return ""
}

// mountProblems reports what is invalid in the volume mounts of the container.
func (c *Container) mountProblems(volumes map[string]bool, bad func(format string, args ...any)) {
	paths := map[string]bool{}
	for i, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			bad(".volumeMounts[%d]: the pod has no volume %q", i, m.Name)
		}
		if !strings.HasPrefix(m.MountPath, "/") {
			bad(".volumeMounts[%d].mountPath: %q is not absolute", i, m.MountPath)
		}
		if paths[path.Clean(m.MountPath)] {
			bad(".volumeMounts[%d].mountPath: %q is used twice", i, m.MountPath)
		}
		paths[path.Clean(m.MountPath)] = true
		if m.SubPath != "" && m.SubPathExpr != "" {
			bad(".volumeMounts[%d]: subPath and subPathExpr exclude each other", i)
		}
		if err := subpath.Check(m.SubPath); err != nil {
			bad(".volumeMounts[%d].subPath: %v", i, err)
		}
	}
}

// resources are those that a manifest can name, with the most of it that makes sense.
var resources = map[string]quantity.Quantity{"cpu": 1e6, "memory": math.MaxInt64 / 2, "ephemeral-storage": math.MaxInt64 / 2}

func (c *Container) problems(s *Set, volumes map[string]bool, init bool) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !isDNSName(c.Name) {
		bad(": the name is not a DNS name in lower case")
	}
	if c.Image == "" {
		bad(".image is missing")
	}
	switch c.ImagePullPolicy {
	case "", "Always", "IfNotPresent", "Never":
	default:
		bad(".imagePullPolicy: %q is not Always, IfNotPresent or Never", c.ImagePullPolicy)
	}
	if c.RestartPolicy != "" && (!init || c.RestartPolicy != "Always") {
		bad(".restartPolicy: only init containers can have one, and it must be Always")
	}
	c.mountProblems(volumes, bad)
	for i, p := range c.Ports {
		if p.ContainerPort < 1 || p.ContainerPort > 65535 || p.HostPort < 0 || p.HostPort > 65535 {
			bad(".ports[%d]: a port is not between 1 and 65535", i)
		}
		if p.Protocol != "" && p.Protocol != "TCP" && p.Protocol != "UDP" && p.Protocol != "SCTP" {
			bad(".ports[%d].protocol: %q is not TCP, UDP or SCTP", i, p.Protocol)
		}
	}
	for _, r := range []map[string]quantity.Quantity{c.Resources.Limits, c.Resources.Requests} {
		for name, q := range r {
			if most, ok := resources[name]; !ok {
				bad(".resources: %q is not supported", name)
			} else if q > most {
				bad(".resources: %s: %v is more than any machine has", name, q)
			}
		}
	}
	for name, p := range map[string]*Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		if p == nil {
			continue
		}
		if problem := p.problem(c); problem != "" {
			bad(".%s: %s", name, problem)
		}
	}
	if _, err := c.environment(s, func(string) (string, error) { return "", nil }); err != nil {
		bad(".env: %v", err)
	}
	return out
}
