package play

import (
	"context"
	"errors"
	"fmt"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
)

// images pulls the images of the set, each once, according to their policies, and enforces
// runAsNonRoot. Nothing has been made of the pods by then.
func (o Options) images(ctx context.Context, set *kube.Set) error {
	policies := map[string]string{}
	want := func(ref, policy string) {
		// The one that asks for more: to pull, or not to.
		if have, ok := policies[ref]; !ok || have == "" || have == "IfNotPresent" {
			policies[ref] = policy
		}
	}
	for _, p := range set.Pods {
		for _, c := range p.Containers() {
			want(c.Image, c.ImagePullPolicy)
		}
		for _, v := range p.Spec.Volumes {
			if v.Image != nil {
				want(v.Image.Reference, v.Image.PullPolicy)
			}
		}
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	images, failed := map[string]*runtimeapi.Image{}, map[string]error{}
	for ref, policy := range policies {
		all.Go(func() {
			image, err := o.image(ctx, ref, policy)
			mu.Lock()
			defer mu.Unlock()
			images[ref], failed[ref] = image, err
		})
	}
	all.Wait()
	told := map[string]bool{}
	var errs []error
	tell := func(p *kube.Pod, err error) {
		if err != nil && !told[err.Error()] {
			told[err.Error()] = true
			errs = append(errs, fmt.Errorf("pod %s: %w", p.Metadata.Name, err))
		}
	}
	for _, p := range set.Pods {
		for _, c := range p.Containers() {
			err := failed[c.Image]
			if err == nil {
				err = checkUser(p, c, images[c.Image])
			}
			tell(p, err)
		}
		for _, v := range p.Spec.Volumes {
			if v.Image != nil {
				tell(p, failed[v.Image.Reference])
			}
		}
	}
	return errors.Join(errs...)
}

// image returns an image, which it pulls first according to the pull policy.
func (o Options) image(ctx context.Context, ref, policy string) (*runtimeapi.Image, error) {
	status := func() (*runtimeapi.Image, error) {
		st, err := o.Client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return st.GetImage(), err
	}
	image, err := status()
	switch {
	case err != nil:
		return nil, err
	case policy == "Never" && image == nil:
		return nil, fmt.Errorf("image %s is not present and imagePullPolicy is Never; pull it (subpod pull %s)", ref, ref)
	case policy != "Always" && image != nil:
		return image, nil
	}
	if err := o.Pull(ctx, ref); err != nil {
		return nil, err
	}
	return status()
}

// checkUser enforces runAsNonRoot where the image sets the user.
func checkUser(p *kube.Pod, c *kube.Container, image *runtimeapi.Image) error {
	must, known := p.NonRoot(c)
	switch {
	case !must || known:
		return nil
	case image.GetUsername() != "":
		return fmt.Errorf("%w: runAsNonRoot: image %s has the user name %q; set runAsUser to a UID", kube.ErrManifest, c.Image, image.Username)
	case image.GetUid().GetValue() == 0:
		return fmt.Errorf("%w: runAsNonRoot: image %s runs as root; set runAsUser", kube.ErrManifest, c.Image)
	}
	return nil
}
