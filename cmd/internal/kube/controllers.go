package kube

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
)

// The workloads, as far as they mean something where pods are created once
// (k8s.io/api/apps/v1, batch/v1). How pods are replaced does not.

// Template is a PodTemplateSpec.
type Template struct {
	Metadata Meta    `json:"metadata"`
	Spec     PodSpec `json:"spec"`
}

// Selector is a LabelSelector. Only what is sure to be wrong is found.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions any               `json:"matchExpressions"`
}

// controller is what all workloads have.
type controller struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   Meta   `json:"metadata"`
	Status     any    `json:"status"` // not read
}

// Deployment is a Deployment or ReplicaSet: as many pods as it has replicas.
type Deployment struct {
	controller
	Spec struct {
		Replicas                *int32   `json:"replicas"`
		Selector                Selector `json:"selector"`
		Template                Template `json:"template"`
		Strategy                any      `json:"strategy"`
		MinReadySeconds         int32    `json:"minReadySeconds"`
		RevisionHistoryLimit    *int32   `json:"revisionHistoryLimit"`
		ProgressDeadlineSeconds *int32   `json:"progressDeadlineSeconds"`
		Paused                  bool     `json:"paused"`
	} `json:"spec"`
}

// ReplicationController is the forerunner of a Deployment.
type ReplicationController struct {
	controller
	Spec struct {
		Replicas        *int32            `json:"replicas"`
		Selector        map[string]string `json:"selector"`
		Template        Template          `json:"template"`
		MinReadySeconds int32             `json:"minReadySeconds"`
	} `json:"spec"`
}

// DaemonSet is a DaemonSet: one pod, since there is one node.
type DaemonSet struct {
	controller
	Spec struct {
		Selector             Selector `json:"selector"`
		Template             Template `json:"template"`
		UpdateStrategy       any      `json:"updateStrategy"`
		MinReadySeconds      int32    `json:"minReadySeconds"`
		RevisionHistoryLimit *int32   `json:"revisionHistoryLimit"`
	} `json:"spec"`
}

// StatefulSet is a StatefulSet: pods with stable names and volumes of their own.
type StatefulSet struct {
	controller
	Spec struct {
		Replicas             *int32   `json:"replicas"`
		Selector             Selector `json:"selector"`
		Template             Template `json:"template"`
		ServiceName          string   `json:"serviceName"`
		PodManagementPolicy  string   `json:"podManagementPolicy"`
		VolumeClaimTemplates []Claim  `json:"volumeClaimTemplates"`
		Ordinals             struct {
			Start int32 `json:"start"`
		} `json:"ordinals"`
		UpdateStrategy                       any    `json:"updateStrategy"`
		MinReadySeconds                      int32  `json:"minReadySeconds"`
		RevisionHistoryLimit                 *int32 `json:"revisionHistoryLimit"`
		PersistentVolumeClaimRetentionPolicy any    `json:"persistentVolumeClaimRetentionPolicy"` // volumes are kept
	} `json:"spec"`
}

// JobSpec is a JobSpec: pods that run until they have succeeded.
type JobSpec struct {
	Parallelism             *int32   `json:"parallelism"`
	Completions             *int32   `json:"completions"`
	CompletionMode          string   `json:"completionMode"`
	BackoffLimit            *int32   `json:"backoffLimit"`
	ActiveDeadlineSeconds   *int64   `json:"activeDeadlineSeconds"`
	TTLSecondsAfterFinished *int32   `json:"ttlSecondsAfterFinished"`
	Suspend                 bool     `json:"suspend"`
	Selector                Selector `json:"selector"`
	ManualSelector          bool     `json:"manualSelector"`
	PodReplacementPolicy    string   `json:"podReplacementPolicy"`
	Template                Template `json:"template"`
}

// Job is a Job.
type Job struct {
	controller
	Spec JobSpec `json:"spec"`
}

// CronJob is a CronJob. It is read, so that mistakes are found, and not scheduled.
type CronJob struct {
	controller
	Spec struct {
		Schedule                   string  `json:"schedule"`
		TimeZone                   *string `json:"timeZone"`
		ConcurrencyPolicy          string  `json:"concurrencyPolicy"`
		StartingDeadlineSeconds    *int64  `json:"startingDeadlineSeconds"`
		SuccessfulJobsHistoryLimit *int32  `json:"successfulJobsHistoryLimit"`
		FailedJobsHistoryLimit     *int32  `json:"failedJobsHistoryLimit"`
		Suspend                    bool    `json:"suspend"`
		JobTemplate                struct {
			Metadata Meta    `json:"metadata"`
			Spec     JobSpec `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// Part is what a pod has from its workload.
type Part struct {
	Workload string // kind and name; "" of a Pod
	After    *Pod   // has to be up before this one starts, nil for none
	Queue    *Queue // of a Job
}

// Queue is what the pods of a Job share: at most Parallel of them run at the same time.
type Queue struct{ Parallel, Pods int }

const (
	templateField = "spec.template."
	// maxReplicas bounds the pods of one workload.
	maxReplicas = 100
	// defaultBackoffLimit is that of the API.
	defaultBackoffLimit = 6
)

func (s *Set) addDeployment(o *object) error {
	d := &Deployment{}
	if err := s.decode(o, d, templateField+"spec."); err != nil {
		return err
	}
	return s.replicate(o, d.controller, d.Spec.Template, d.Spec.Replicas, d.Spec.Selector.MatchLabels)
}

func (s *Set) addReplicationController(o *object) error {
	d := &ReplicationController{}
	if err := s.decode(o, d, templateField+"spec."); err != nil {
		return err
	}
	return s.replicate(o, d.controller, d.Spec.Template, d.Spec.Replicas, d.Spec.Selector)
}

func (s *Set) addDaemonSet(o *object) error {
	d := &DaemonSet{}
	if err := s.decode(o, d, templateField+"spec."); err != nil {
		return err
	}
	return s.replicate(o, d.controller, d.Spec.Template, nil, d.Spec.Selector.MatchLabels)
}

// replicate adds a pod for each replica.
func (s *Set) replicate(o *object, w controller, t Template, replicas *int32, labels map[string]string) error {
	n, err := o.count("spec.replicas", replicas, 1)
	if err != nil {
		return err
	}
	if err := o.serves(t, labels); err != nil {
		return err
	}
	s.addNone(n, o, w, t)
	for i := range n {
		s.addReplica(o, w, t, i, i)
	}
	return nil
}

// addNone adds a workload that has no replica to None.
func (s *Set) addNone(n int32, o *object, w controller, t Template) {
	if n > 0 {
		return
	}
	p := s.addReplica(o, w, t, 0, 0)
	p.Metadata.Name = ""
	s.Pods, s.None = s.Pods[:len(s.Pods)-1], append(s.None, p)
}

// count returns how many pods a field asks for.
func (o *object) count(field string, n *int32, otherwise int32) (int32, error) {
	if n == nil {
		return otherwise, nil
	}
	if *n < 0 || *n > maxReplicas {
		return 0, o.problem("%s: %d is not between 0 and %d", field, *n, maxReplicas)
	}
	return *n, nil
}

// serves checks the template of a workload whose pods run for ever.
func (o *object) serves(t Template, labels map[string]string) error {
	if p := t.Spec.RestartPolicy; p != "" && p != always {
		return o.problem("spec.template.spec.restartPolicy: %q; here only Always is possible", p)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if t.Metadata.Labels[k] != labels[k] {
			return o.problem("spec.selector: the template has no label %s=%s", k, labels[k])
		}
	}
	return nil
}

// addReplica adds one pod of a workload, the i-th one, with a number in its name. What the
// caller changes of it is not the template's.
func (s *Set) addReplica(o *object, w controller, t Template, i, number int32) *Pod {
	p := &Pod{
		Kind: "Pod", Metadata: t.Metadata, Spec: t.Spec,
		origin: o, template: templateField, ordinal: i, Part: Part{Workload: w.Kind + "/" + w.Metadata.Name},
	}
	p.Metadata.Name, p.Metadata.Namespace = fmt.Sprintf("%s-%d", w.Metadata.Name, number), w.Metadata.Namespace
	p.Metadata.Labels, p.Metadata.Annotations = maps.Clone(t.Metadata.Labels), maps.Clone(t.Metadata.Annotations)
	p.Spec.Volumes, p.Spec.Containers, p.Spec.InitContainers = slices.Clone(t.Spec.Volumes), slices.Clone(t.Spec.Containers), slices.Clone(t.Spec.InitContainers)
	s.Pods = append(s.Pods, p)
	return p
}

// label sets labels of the pod that its controller gives it.
func label(p *Pod, labels map[string]string) {
	if p.Metadata.Labels == nil {
		p.Metadata.Labels = map[string]string{}
	}
	maps.Copy(p.Metadata.Labels, labels)
}

func (s *Set) addStatefulSet(o *object) error {
	d := &StatefulSet{}
	if err := s.decode(o, d, templateField+"spec."); err != nil {
		return err
	}
	n, err := o.count("spec.replicas", d.Spec.Replicas, 1)
	if err != nil {
		return err
	}
	if err := o.serves(d.Spec.Template, d.Spec.Selector.MatchLabels); err != nil {
		return err
	}
	first := d.Spec.Ordinals.Start
	if first < 0 || first > math.MaxInt32-maxReplicas {
		return o.problem("spec.ordinals.start: %d is no number for a pod", first)
	}
	policy := d.Spec.PodManagementPolicy
	if policy != "" && policy != "OrderedReady" && policy != "Parallel" {
		return o.problem("spec.podManagementPolicy: %q is not OrderedReady or Parallel", policy)
	}
	for i, c := range d.Spec.VolumeClaimTemplates {
		if !isDNSName(c.Metadata.Name) {
			return o.problem("spec.volumeClaimTemplates[%d].metadata.name: %q is not a DNS name in lower case", i, c.Metadata.Name)
		}
	}
	s.addNone(n, o, d.controller, d.Spec.Template)
	var last *Pod
	for i := range n {
		p := s.addReplica(o, d.controller, d.Spec.Template, i, first+i)
		if policy != "Parallel" {
			p.Part.After = last
		}
		last = p
		p.Spec.Hostname, p.Spec.Subdomain = p.Metadata.Name, d.Spec.ServiceName
		label(p, map[string]string{"statefulset.kubernetes.io/pod-name": p.Metadata.Name, "apps.kubernetes.io/pod-index": strconv.Itoa(int(first + i))})
		for _, c := range d.Spec.VolumeClaimTemplates {
			claim(p, c.Metadata.Name)
		}
	}
	return nil
}

// claim gives the pod a volume of its own, which takes the place of one of that name.
func claim(p *Pod, name string) {
	v := Volume{Name: name, PersistentVolumeClaim: &ClaimVolume{ClaimName: name + "-" + p.Metadata.Name}}
	p.Spec.Volumes = append(slices.DeleteFunc(p.Spec.Volumes, func(v Volume) bool { return v.Name == name }), v)
}

func (s *Set) addJob(o *object) error {
	j := &Job{}
	if err := s.decode(o, j, templateField+"spec."); err != nil {
		return err
	}
	return s.addJobPods(o, j.controller, &j.Spec)
}

// addJobPods adds a pod for each completion. One that fails is run again in its place.
func (s *Set) addJobPods(o *object, w controller, j *JobSpec) error {
	parallel, err := o.count("spec.parallelism", j.Parallelism, 1)
	if err != nil {
		return err
	}
	n, err := o.count("spec.completions", j.Completions, parallel)
	if err != nil {
		return err
	}
	limit := int32(defaultBackoffLimit)
	if j.BackoffLimit != nil {
		limit = *j.BackoffLimit
	}
	switch p := j.Template.Spec.RestartPolicy; {
	case p != "OnFailure" && p != never:
		return o.problem("spec.template.spec.restartPolicy: %q is not OnFailure or Never", p)
	case limit < 0:
		return o.problem("spec.backoffLimit: %d is negative", limit)
	case j.CompletionMode != "" && j.CompletionMode != "NonIndexed" && j.CompletionMode != "Indexed":
		return o.problem("spec.completionMode: %q is not NonIndexed or Indexed", j.CompletionMode)
	case j.CompletionMode == "Indexed" && j.Completions == nil:
		return o.problem("spec.completions is missing; with completionMode Indexed it is required")
	}
	if j.TTLSecondsAfterFinished != nil {
		s.notes.effectless("ttlSecondsAfterFinished")
	}
	if j.Suspend || parallel == 0 {
		s.addNone(0, o, w, j.Template)
		s.notes.skipped = append(s.notes.skipped, skippedObject{kind: "Job", name: w.Metadata.Name, why: "suspended"})
		return nil
	}
	s.addNone(n, o, w, j.Template)
	queue := &Queue{Parallel: int(min(parallel, n)), Pods: int(n)}
	for i := range n {
		p := s.addReplica(o, w, j.Template, i, i)
		p.retries, p.Part.Queue = &limit, queue
		if p.Spec.ActiveDeadlineSeconds == nil {
			p.Spec.ActiveDeadlineSeconds = j.ActiveDeadlineSeconds
		}
		label(p, map[string]string{"batch.kubernetes.io/job-name": w.Metadata.Name, "job-name": w.Metadata.Name})
		if j.CompletionMode == "Indexed" {
			index(p, i)
		}
	}
	return nil
}

// index tells the pod of an indexed Job which one it is.
func index(p *Pod, i int32) {
	const name = "batch.kubernetes.io/job-completion-index"
	text := strconv.Itoa(int(i))
	label(p, map[string]string{name: text})
	if p.Metadata.Annotations == nil {
		p.Metadata.Annotations = map[string]string{}
	}
	p.Metadata.Annotations[name] = text
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].Env = append([]EnvVar{{Name: "JOB_COMPLETION_INDEX", Value: text}}, list[i].Env...)
		}
	}
}

func (s *Set) addCronJob(o *object) error {
	c := &CronJob{}
	if err := s.decode(o, c, "spec.jobTemplate.spec.template.spec."); err != nil {
		return err
	}
	s.notes.skipped = append(s.notes.skipped, skippedObject{kind: "CronJob", name: c.Metadata.Name,
		why: fmt.Sprintf("not scheduled (%s): make a Job of its jobTemplate, and a timer that plays it", c.Spec.Schedule)})
	return nil
}

// Containers returns all containers of the pod, in the order in which they are started.
func (p *Pod) Containers() []*Container {
	var out []*Container
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}
