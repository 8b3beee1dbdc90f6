package kube

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// notes is what of the manifests has no effect here.
type notes struct {
	skipped []skippedObject
	fields  map[string]bool
}

type skippedObject struct{ kind, name, why string }

// builtIn are the API groups whose kinds are all known, so that others are misspelt.
var builtIn = []string{"v1", "apps", "batch", "policy", "autoscaling", "networking.k8s.io", "rbac.authorization.k8s.io"}

// meaningless are kinds of these that have no meaning where there is no cluster.
var meaningless = strings.Fields(`
	Binding ComponentStatus Endpoints Event LimitRange Namespace Node PersistentVolume PodTemplate ResourceQuota ServiceAccount
	ControllerRevision
	PodDisruptionBudget PodSecurityPolicy Eviction
	HorizontalPodAutoscaler Scale
	Ingress IngressClass NetworkPolicy IPAddress ServiceCIDR
	ClusterRole ClusterRoleBinding Role RoleBinding`)

// skip notes an object of a kind without a meaning here. A kind that does not exist is an
// error.
func (s *Set) skip(o *object, version, kind, name string) error {
	group, _, ok := strings.Cut(version, "/")
	for known := range kinds {
		have, is, _ := strings.Cut(known, " ")
		if g, _, _ := strings.Cut(have, "/"); is == kind && (g == group || group == "extensions") {
			return o.problem("apiVersion: %q of %s is not supported, %s is", version, kind, have)
		}
	}
	if slices.Contains(builtIn, group) && !slices.Contains(meaningless, kind) || !ok && version != "v1" {
		return o.problem("kind: there is no %q of %q", kind, version)
	}
	s.notes.skipped = append(s.notes.skipped, skippedObject{kind: kind, name: name})
	return nil
}

// otherHooks returns the hooks of Helm's that an object is for, where it is for none that an
// installation runs: tests, upgrades and removals.
func otherHooks(annotations map[string]string) string {
	hooks := annotations["helm.sh/hook"]
	for hook := range strings.SplitSeq(hooks, ",") {
		switch strings.TrimSpace(hook) {
		case "pre-install", "post-install", "crd-install":
			return ""
		}
	}
	return hooks
}

// isList reports whether the kind is a list of objects, each with its kind.
func isList(version, kind string) bool {
	one, ok := strings.CutSuffix(kind, "List")
	return kind == "List" && version == "v1" || ok && kinds[version+" "+one] != nil
}

// effectless are fields of a pod's spec that the API has, and that have no effect where
// there is one node, without a scheduler, accounts and other security modules.
var effectless = fieldSet(`
	affinity nodeName nodeSelector overhead os preemptionPolicy priority priorityClassName readinessGates
	schedulerName schedulingGates schedulingGroup setHostnameAsFQDN tolerations topologySpreadConstraints
	serviceAccount serviceAccountName imagePullSecrets resources resourceClaims ephemeralContainers
	securityContext.appArmorProfile securityContext.fsGroupChangePolicy securityContext.seLinuxChangePolicy
	securityContext.seLinuxOptions securityContext.supplementalGroupsPolicy securityContext.windowsOptions
	containers.resizePolicy containers.resources.claims containers.terminationMessagePath containers.terminationMessagePolicy
	containers.securityContext.appArmorProfile containers.securityContext.seLinuxOptions containers.securityContext.windowsOptions
	containers.livenessProbe.terminationGracePeriodSeconds containers.startupProbe.terminationGracePeriodSeconds
	containers.restartPolicyRules`)

func fieldSet(text string) map[string]bool {
	out := map[string]bool{}
	for _, f := range strings.Fields(text) {
		out[f] = true
	}
	return out
}

var indices = regexp.MustCompile(`\[\d+\]`)

// field notes a field that the types do not have, where it is one without an effect. spec
// is the path of the pod's spec.
func (n *notes) field(path, spec string) bool {
	if path == "spec.podFailurePolicy" || path == "spec.backoffLimitPerIndex" || path == "spec.maxFailedIndexes" || path == "spec.successPolicy" {
		n.effectless(strings.TrimPrefix(path, "spec."))
		return true
	}
	path, ok := strings.CutPrefix(path, spec)
	path = indices.ReplaceAllString(path, "")
	if rest, init := strings.CutPrefix(path, "initContainers."); init {
		path = "containers." + rest
	}
	if !ok || !effectless[path] {
		return false
	}
	n.effectless(path)
	return true
}

func (n *notes) effectless(field string) { n.fields[field] = true }

// objects describes the objects that were skipped: those without a reason of their own by
// kind.
func (n *notes) objects() string {
	names := map[string][]string{}
	var order, out []string
	for _, o := range n.skipped {
		if o.why != "" {
			out = append(out, o.kind+" "+o.name+" is "+o.why)
			continue
		}
		if names[o.kind] == nil {
			order = append(order, o.kind)
		}
		names[o.kind] = append(names[o.kind], o.name)
	}
	for i, kind := range order {
		order[i] = kind + " " + strings.Join(names[kind], ", ")
	}
	if len(order) > 0 {
		out = append(out, "without a meaning here: "+strings.Join(order, "; "))
	}
	return strings.Join(out, "; ")
}

// Notes describes what of the manifests has no effect here, one line for all objects and
// one for all fields.
func (s *Set) Notes() []string {
	var out []string
	if len(s.notes.skipped) > 0 {
		out = append(out, "skipped: "+s.notes.objects())
	}
	if len(s.notes.fields) > 0 {
		out = append(out, "without effect here: "+strings.Join(slices.Sorted(maps.Keys(s.notes.fields)), ", "))
	}
	return out
}
