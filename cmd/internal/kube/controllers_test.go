package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func parse(t *testing.T, manifest string) *Set {
	t.Helper()
	set, err := Parse(Source{Text: []byte(manifest)})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestStatefulSet: names, claims and order of the pods.
func TestStatefulSet(t *testing.T) {
	const set = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: all
  ordinals: {start: 4}
  podManagementPolicy: POLICY
  template:
    spec:
      containers: [{name: c, image: i, volumeMounts: [{name: data, mountPath: /d}]}]
      volumes: [{name: data, emptyDir: {}}, {name: other, emptyDir: {}}]
  volumeClaimTemplates: [{metadata: {name: data}}]
`
	for _, policy := range []string{"OrderedReady", "Parallel"} {
		s := parse(t, strings.ReplaceAll(set, "POLICY", policy))
		var got []string
		for i, p := range s.Pods {
			after := "-"
			if p.Part.After != nil {
				after = p.Part.After.Metadata.Name
			}
			vols := p.Spec.Volumes
			got = append(got, fmt.Sprintf("%s %s.%s %s %s %d", p.Metadata.Name, p.Spec.Hostname, p.Spec.Subdomain, vols[len(vols)-1].PersistentVolumeClaim.ClaimName, after, len(vols)))
			if p.Metadata.Labels["statefulset.kubernetes.io/pod-name"] != p.Metadata.Name || p.Metadata.Labels["apps.kubernetes.io/pod-index"] != fmt.Sprint(4+i) {
				t.Errorf("%v", p.Metadata.Labels)
			}
		}
		want := []string{"db-4 db-4.all data-db-4 - 2", "db-5 db-5.all data-db-5 db-4 2", "db-6 db-6.all data-db-6 db-5 2"}
		if policy == "Parallel" {
			want = []string{"db-4 db-4.all data-db-4 - 2", "db-5 db-5.all data-db-5 - 2", "db-6 db-6.all data-db-6 - 2"}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if names := s.ClaimNames(); !slices.Equal(names, []string{"data-db-4", "data-db-5", "data-db-6"}) {
			t.Errorf("%q", names)
		}
	}
}

// TestJob: how many pods there are, how many of them at once, and how often each is tried.
func TestJob(t *testing.T) {
	const job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {%stemplate: {spec: {restartPolicy: Never, initContainers: [{name: i, image: i}], containers: [{name: c, image: i}]}}}"
	for spec, want := range map[string]string{
		"":                                  "1 pods, 1 at once, on-failure:6",
		"backoffLimit: 0, ":                 "1 pods, 1 at once, no",
		"backoffLimit: 2, ":                 "1 pods, 1 at once, on-failure:2",
		"completions: 5, ":                  "5 pods, 1 at once, on-failure:6",
		"completions: 5, parallelism: 2, ":  "5 pods, 2 at once, on-failure:6",
		"completions: 2, parallelism: 50, ": "2 pods, 2 at once, on-failure:6",
		"parallelism: 3, ":                  "3 pods, 3 at once, on-failure:6",
	} {
		s := parse(t, fmt.Sprintf(job, spec))
		w, _, err := s.Pods[0].Workload(s, Place{})
		if err != nil {
			t.Fatal(err)
		}
		policy := w.Containers[1].Restart
		got := fmt.Sprintf("%d pods, %d at once, %s", len(s.Pods), s.Pods[0].Part.Queue.Parallel, policy.Name)
		if policy.Max > 0 {
			got += fmt.Sprintf(":%d", policy.Max)
		}
		if got != want || w.Containers[0].Restart != policy {
			t.Errorf("%q: %s, want %s; %+v", spec, got, want, w.Containers)
		}
	}
	for _, spec := range []string{"suspend: true, ", "parallelism: 0, "} {
		if _, err := Parse(Source{Text: fmt.Appendf(nil, job, spec)}); err == nil || !strings.Contains(err.Error(), "Job j is suspended") {
			t.Errorf("%s: %v", spec, err)
		}
	}
	s := parse(t, fmt.Sprintf(job, "completions: 2, completionMode: Indexed, "))
	for i, p := range s.Pods {
		if e := p.Spec.Containers[0].Env; len(e) != 1 || e[0].Value != fmt.Sprint(i) || p.Metadata.Annotations["batch.kubernetes.io/job-completion-index"] != fmt.Sprint(i) {
			t.Errorf("%d: %v, %v", i, e, p.Metadata)
		}
	}
}

// TestWorkloadsRefused: what is wrong in a workload, each by its field.
func TestWorkloadsRefused(t *testing.T) {
	const template = "template: {spec: {containers: [{name: c, image: i}]}}"
	for text, want := range map[string]string{
		"apps/v1 StatefulSet {podManagementPolicy: Any, " + template + "}":                                                                           "spec.podManagementPolicy",
		"apps/v1 StatefulSet {ordinals: {start: -1}, " + template + "}":                                                                              "spec.ordinals.start",
		"apps/v1 StatefulSet {volumeClaimTemplates: [{metadata: {name: ../x}}], " + template + "}":                                                   "spec.volumeClaimTemplates[0].metadata.name",
		"apps/v1 StatefulSet {replicas: 101, " + template + "}":                                                                                      "spec.replicas",
		"apps/v1 DaemonSet {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}":                                            "only Always",
		"apps/v1 DaemonSet {replicas: 2, " + template + "}":                                                                                          `unknown field "spec.replicas"`,
		"v1 ReplicationController {selector: {a: b}, " + template + "}":                                                                              "no label a=b",
		"batch/v1 Job {" + template + "}":                                                                                                            `"" is not OnFailure or Never`,
		"batch/v1 Job {backoffLimit: -1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}":                               "spec.backoffLimit",
		"batch/v1 Job {completionMode: Indexed, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}":                        "spec.completions is missing",
		"batch/v1 Job {completions: 1000, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}":                              "spec.completions",
		"batch/v1 CronJob {jobTemplate: {spec: {template: {spec: {containers: [{name: c, imag: i}]}}}}}":                                             `"spec.jobTemplate.spec.template.spec.containers[0].imag"`,
		"apps/v1 Deployment {template: {spec: {containers: [{name: c, image: i, env: [{name: A, valueFrom: {resourceFieldRef: {resource: x}}}]}]}}}": "resourceFieldRef",
		"v1 PersistentVolumeClaim {}": "",
	} {
		head, spec, _ := strings.Cut(text, "{")
		version, kind, _ := strings.Cut(strings.TrimSpace(head), " ")
		_, err := Parse(Source{Text: []byte("apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: w}\nspec: {" + spec)})
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
	if _, err := Parse(Source{Text: []byte("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: ../x}")}); !errors.Is(err, ErrManifest) {
		t.Errorf("a claim that leads out of the volumes: %v", err)
	}
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d%d}\nspec: {replicas: 100, %s}\n", i, template)
	}
	s, err := Parse(Source{Text: []byte(many.String())})
	if err == nil || !strings.Contains(err.Error(), "more than 500 pods") || len(s.Pods) > maxPods+maxReplicas {
		t.Errorf("%v, after %d pods", err, len(s.Pods))
	}
	one, _, _ := strings.Cut(many.String(), "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d1}")
	if _, err := Parse(Source{Text: []byte(one + one)}); err == nil || strings.Count(err.Error(), "more than one pod is named") != 1 {
		t.Errorf("the same workload twice: %v", err)
	}
	if _, err := Parse(Source{Text: []byte(strings.Replace(one, "name: d0", "name: d0, namespace: ../x", 1))}); err == nil || strings.Count(err.Error(), "metadata.namespace") != 1 {
		t.Errorf("a namespace that is none: %v", err)
	}
}
