package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	strictjson "sigs.k8s.io/json"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/subpath"
)

// ErrManifest reports that a manifest is invalid or uses an unsupported feature. The
// message names the object and the field.
var ErrManifest = errors.New("manifest")

// Set contains the objects of the manifests.
type Set struct {
	Pods       []*Pod                // including those of workloads, in the order in which they are started
	None       []*Pod                // one without a name of each workload that is to have no pods
	ConfigMaps map[string]*ConfigMap // by namespace/name
	Secrets    map[string]*Secret
	Claims     map[string]*Claim
	Services   []*Service

	notes notes
}

// maxPods bounds the pods of all workloads of a Set.
const maxPods = 500

// Parse reads the objects of manifests. Objects and fields without a meaning here are left
// out, see Notes; unknown fields and unsupported values are errors: ErrManifest, with all
// problems at once, each with its place.
func Parse(sources ...Source) (*Set, error) {
	s := &Set{ConfigMaps: map[string]*ConfigMap{}, Secrets: map[string]*Secret{}, Claims: map[string]*Claim{}, notes: notes{fields: map[string]bool{}}}
	size := 0
	for _, src := range sources {
		size += len(src.Text)
	}
	if size > MaxManifest {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrManifest, MaxManifest)
	}
	left := &budget{nodes: maxNodes, bytes: maxJSON}
	var errs []error
	count := 0
	for _, src := range sources {
		docs, err := src.documents(left)
		errs, count = append(errs, err), count+len(docs)
		for _, doc := range docs {
			errs = append(errs, s.add(doc, left, 0))
		}
	}
	err := errors.Join(errs...)
	switch {
	case err != nil:
		return nil, err
	case count == 0:
		return nil, fmt.Errorf("%w: the manifest is empty; it must contain at least one object", ErrManifest)
	case s.empty():
		return nil, fmt.Errorf("%w: nothing in it can be run here: %s", ErrManifest, s.notes.objects())
	}
	return s, s.check()
}

func (s *Set) empty() bool {
	return len(s.Pods)+len(s.ConfigMaps)+len(s.Secrets)+len(s.Claims)+len(s.Services) == 0 && len(s.notes.skipped) > 0
}

// maxLists is how deep Lists may contain Lists.
const maxLists = 3

// add adds an object, or those of a List. Beyond maxPods check refuses the set, and
// nothing more is added.
func (s *Set) add(o *object, left *budget, depth int) error {
	if len(s.Pods) > maxPods {
		return nil
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   Meta   `json:"metadata"`
	}
	if err := json.Unmarshal(o.json, &head); err != nil {
		return o.decodeError(err)
	}
	if o.name = strings.TrimSpace(head.Kind + " " + head.Metadata.Name); o.name == "" {
		o.name = "object"
	}
	if o.key = "default/" + head.Metadata.Name; head.Metadata.Namespace != "" {
		o.key = head.Metadata.Namespace + "/" + head.Metadata.Name
	}
	if head.APIVersion == "" || head.Kind == "" {
		return o.problem("apiVersion and kind: both are required")
	}
	if isList(head.APIVersion, head.Kind) {
		if depth == maxLists {
			return o.problem("items: Lists are nested more than %d deep", maxLists)
		}
		items, err := o.items(left)
		errs := []error{err}
		for _, item := range items {
			errs = append(errs, s.add(item, left, depth+1))
		}
		return errors.Join(errs...)
	}
	read := kinds[head.APIVersion+" "+head.Kind]
	if read == nil {
		return s.skip(o, head.APIVersion, head.Kind, head.Metadata.Name)
	}
	if head.Metadata.Name == "" {
		return o.problem("metadata.name is missing")
	}
	if hooks := otherHooks(head.Metadata.Annotations); hooks != "" {
		s.notes.skipped = append(s.notes.skipped, skippedObject{kind: head.Kind, name: head.Metadata.Name, why: "for Helm's " + hooks})
		return nil
	}
	return read(s, o)
}

// kinds are the objects that are read.
var kinds = map[string]func(*Set, *object) error{
	"v1 Pod":                   (*Set).addPod,
	"apps/v1 Deployment":       (*Set).addDeployment,
	"apps/v1 ReplicaSet":       (*Set).addDeployment,
	"v1 ReplicationController": (*Set).addReplicationController,
	"apps/v1 StatefulSet":      (*Set).addStatefulSet,
	"apps/v1 DaemonSet":        (*Set).addDaemonSet,
	"batch/v1 Job":             (*Set).addJob,
	"batch/v1 CronJob":         (*Set).addCronJob,
	"v1 ConfigMap":             func(s *Set, o *object) error { return keep(s, o, s.ConfigMaps) },
	"v1 Secret":                func(s *Set, o *object) error { return keep(s, o, s.Secrets) },
	"v1 PersistentVolumeClaim": func(s *Set, o *object) error { return keep(s, o, s.Claims) },
	"v1 Service": func(s *Set, o *object) error {
		svc := &Service{origin: o}
		s.Services = append(s.Services, svc)
		return s.decode(o, svc, "")
	},
}

// keep adds an object to those of its kind.
func keep[T any](s *Set, o *object, all map[string]*T) error {
	v := new(T)
	err := s.decode(o, v, "")
	if all[o.key] != nil {
		return errors.Join(err, o.problem("metadata.name: another one has the same name"))
	}
	all[o.key] = v
	return err
}

// in returns the set as objects of a namespace see it: configMaps and secrets are those of
// the namespace, by name.
func (s *Set) in(namespace string) *Set {
	out := *s
	out.ConfigMaps, out.Secrets = within(s.ConfigMaps, namespace), within(s.Secrets, namespace)
	return &out
}

func within[T any](all map[string]*T, namespace string) map[string]*T {
	out := map[string]*T{}
	for key, v := range all {
		if ns, name, _ := strings.Cut(key, "/"); ns == namespace {
			out[name] = v
		}
	}
	return out
}

func (s *Set) addPod(o *object) error {
	p := &Pod{origin: o}
	s.Pods = append(s.Pods, p)
	return s.decode(o, p, "spec.")
}

// decode reads an object. Unknown fields are errors, those of the API that have no effect
// are noted; spec is the path of the pod's.
func (s *Set) decode(o *object, into any, spec string) error {
	strict, err := strictjson.UnmarshalStrict(o.json, into)
	if err != nil {
		return o.decodeError(err)
	}
	var errs []error
	for _, e := range strict {
		var field strictjson.FieldError
		if !errors.As(e, &field) {
			errs = append(errs, o.errorAt(0, e))
			continue
		}
		if path := field.FieldPath(); spec == "" || !s.notes.field(path, spec) {
			errs = append(errs, o.errorAt(o.line(path), fmt.Errorf("%w (misspelt, or not supported)", e)))
		}
	}
	return errors.Join(errs...)
}

// decodeError says where a value is of the wrong type.
func (o *object) decodeError(err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return o.errorAt(o.node.Line, err)
	}
	return o.errorAt(o.lineAt(wrong.Offset), fmt.Errorf("%s: %s where a value of type %s is expected (quote what is meant as text)", wrong.Field, wrong.Value, wrong.Type))
}

// isDNSName reports whether s is a DNS name of at most 63 characters: lower-case
// letters and digits, with dots and hyphens in between.
func isDNSName(s string) bool {
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" && strings.Trim(s, "-.") == s && s != ""
}

func (s *Set) check() error {
	if len(s.Pods) > maxPods {
		return fmt.Errorf("%w: it has more than %d pods", ErrManifest, maxPods)
	}
	var errs []error
	seen, told := map[string]bool{}, map[*object]bool{}
	for _, p := range s.None {
		setDefaults(p)
	}
	for _, p := range s.Pods {
		setDefaults(p)
		key := p.Metadata.Namespace + "/" + p.Metadata.Name
		if seen[key] && !told[p.origin] { // of a workload once
			told[p.origin] = true
			errs = append(errs, p.origin.problem("metadata.name: more than one pod is named %s", key))
		}
		seen[key] = true
		problems := p.problems(s.in(p.Metadata.Namespace))
		if p.ordinal > 0 {
			continue // the same as of the first one
		}
		for _, problem := range problems {
			errs = append(errs, p.origin.problem("%s%s", p.template, problem))
		}
	}
	for _, name := range s.ClaimNames() {
		if !isDNSName(name) {
			errs = append(errs, fmt.Errorf("%w: PersistentVolumeClaim %q: metadata.name is not a DNS name in lower case", ErrManifest, name))
		}
	}
	errs = append(errs, s.addServices()...)
	return errors.Join(errs...)
}

// setDefaults sets what the manifest leaves to the API.
func setDefaults(p *Pod) {
	if p.Metadata.Namespace == "" {
		p.Metadata.Namespace = "default"
	}
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = always
	}
	for i := range p.Spec.Volumes {
		// One without a source, as with "emptyDir:" and nothing after it, is an emptyDir.
		if v := &p.Spec.Volumes[i]; v.Ephemeral != nil && v.EmptyDir == nil || v.sources() == 0 {
			v.EmptyDir = &EmptyDir{}
		}
	}
}

// problems describes what is invalid in a pod, by field.
func (p *Pod) problems(s *Set) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !isDNSName(p.Metadata.Name) {
		bad("metadata.name: %q is not a DNS name in lower case", p.Metadata.Name)
	}
	if ns := p.Metadata.Namespace; !isDNSName(ns) || strings.Contains(ns, ".") {
		bad("metadata.namespace: %q is not a DNS label in lower case", ns)
	}
	if key := api.Reserved(p.Metadata.Labels, p.Metadata.Annotations); key != "" {
		bad("metadata: %s is reserved for subpod's own commands", key)
	}
	spec := &p.Spec
	if len(spec.Containers) == 0 {
		bad("spec.containers: at least one container is required")
	}
	switch spec.RestartPolicy {
	case always, "OnFailure", never:
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
	timeProblems(p, bad)
	volumes := map[string]bool{}
	for i, v := range spec.Volumes {
		if volumes[v.Name] {
			bad("spec.volumes[%d].name: %q is used twice", i, v.Name)
		}
		volumes[v.Name] = true
		if e := v.EmptyDir; e != nil && e.SizeLimit != nil && !v.inMemory() {
			s.notes.effectless("volumes.emptyDir.sizeLimit (but in memory)")
		}
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

// sources counts what the volume is to be made of: one is right.
func (v *Volume) sources() (n int) {
	for _, set := range []bool{v.EmptyDir != nil, v.HostPath != nil, v.ConfigMap != nil, v.Secret != nil, v.PersistentVolumeClaim != nil, v.Image != nil, v.DownwardAPI != nil, v.Projected != nil} {
		if set {
			n++
		}
	}
	return n
}

func (v *Volume) problem(s *Set) string {
	switch {
	case !isDNSName(v.Name):
		return "the name is not a DNS name in lower case"
	case v.sources() != 1:
		return "one of emptyDir, hostPath, configMap, secret, persistentVolumeClaim, image, downwardAPI and projected must be set"
	case v.EmptyDir != nil && v.EmptyDir.Medium != "" && v.EmptyDir.Medium != "Memory":
		return "emptyDir.medium: " + v.EmptyDir.Medium + " is not supported"
	case v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && (*v.EmptyDir.SizeLimit < 0 || *v.EmptyDir.SizeLimit > math.MaxInt64/2):
		return "emptyDir.sizeLimit is no size that a volume can have"
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
		if f.FieldRef == nil && f.ResourceFieldRef != nil {
			continue
		}
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
	if l := c.Lifecycle; l != nil && l.StopSignal != "" && runtimeapi.Signal_value["SIGNAL_"+l.StopSignal] == 0 {
		bad(".lifecycle.stopSignal: %q is no signal", l.StopSignal)
	}
	if l := c.Lifecycle; l != nil {
		if text := l.PostStart.problem(c); text != "" {
			bad(".lifecycle.postStart: %s", text)
		}
		if text := l.PreStop.problem(c); text != "" {
			bad(".lifecycle.preStop: %s", text)
		}
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
			most, ok := resources[name]
			switch {
			case strings.Contains(name, "/") || strings.HasPrefix(name, "hugepages-"):
				s.notes.effectless("containers.resources of " + name)
			case !ok:
				bad(".resources: %q is not supported", name)
			case q > most:
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
