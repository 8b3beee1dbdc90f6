package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	imagecopy "go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	imagestorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"

	"github.com/subpod/subpod/pkg/trace"
	"github.com/subpod/subpod/storage/internal/fetch"
)

// PullRequest names an image to pull.
type PullRequest struct {
	Ref  string
	Auth *Auth
	// Platform is which image of an index is pulled. Its name then stands for that one,
	// whatever it stood for before.
	Platform Platform
	// Progress, if set, is called with the state of the download now and then, from
	// another goroutine, one call at a time. It must not block.
	Progress func(Progress)
}

// Progress of a pull.
type Progress struct {
	// Downloaded and Total are bytes of the blobs whose download has begun. Total
	// grows as more begin.
	Downloaded, Total int64
	// Blobs begun, and among these done or found in the store already.
	Blobs, Done int
}

// Pull updates the image that r.Ref names from its registry and returns it. The same reference with the same credentials is pulled once at a
// time: other callers wait for that pull, and a caller that gives up does not
// end it for the others. Nothing is left behind on failure.
//
// ErrBadReference, ErrImageNotFound, ErrUnauthorized, ErrRegistryUnavailable,
// ErrSignature, ErrCorrupt, ErrUnsupported, ErrIDRange, ErrNoSpace, or the
// error of ctx.
func (im *Images) Pull(ctx context.Context, r PullRequest) (Image, error) {
	named, err := parseReference(r.Ref)
	if err != nil {
		return Image{}, err
	}
	img, err := im.pulls.join(ctx, flightKey(named, r.Auth, r.Platform), r.Progress, func(ctx context.Context, progress func(Progress)) (Image, error) {
		return im.pull(ctx, named, r, progress)
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	return img, nil
}

// pull pulls in a content process, which reaches the registry through a proxy of the
// server's.
func (im *Images) pull(ctx context.Context, named reference.Named, r PullRequest, progress func(Progress)) (img Image, err error) {
	began := time.Now()
	trace.Set(ctx, "image", named.String())
	count := pullCount{began: began, observe: im.store.opts.Pulled}
	err = im.transfer(ctx, func(t *transfer) error {
		img, err = t.pull(named, r, count.watch(progress))
		return err
	})
	count.end(err)
	if err != nil {
		return Image{}, err
	}
	im.store.log.Info("image pulled", "ref", named.String(), "image", img.ID, "bytes", img.Size, "took", time.Since(began).Round(time.Millisecond))
	return img, nil
}

func (t *transfer) pull(named reference.Named, r PullRequest, progress func(Progress)) (img Image, err error) {
	im := t.im
	sys, err := im.registries.systemContext(t.tmp)
	if err != nil {
		return Image{}, err
	}
	policy, err := im.registries.readPolicy()
	if err != nil {
		return Image{}, err
	}
	endpoints, err := im.registries.endpoints(sys, named)
	if err != nil {
		return Image{}, err
	}
	if err := addCredentials(sys, named, r.Auth, endpoints); err != nil {
		return Image{}, err
	}
	proxy, err := im.startProxy(t.ctx, endpoints)
	if err != nil {
		return Image{}, err
	}
	defer func() {
		err = classify(t.ctx, explain(proxy, err))
		proxy.Close(worthKeeping(err))
		if errors.Is(err, ErrNoSpace) {
			im.spool.Clear()
		}
	}()
	_, step := trace.Start(t.ctx, "ask whether it has changed")
	img, ok := t.unchanged(named, r.Platform, policy, proxy)
	step.End(nil)
	if ok {
		return img, nil
	}
	job := contentJob{Pull: named.String(), Platform: r.Platform, Route: proxy.Route()}
	for try := 0; ; try++ {
		_, step := trace.Start(t.ctx, "fetch and unpack")
		ids, err := t.runContent(job, contentRun{progress: progress, proxy: proxy})
		step.End(err)
		if errors.Is(classOf(err), ErrCorrupt) && proxy.Distrust(t.ctx) {
			continue
		}
		if err != nil {
			return Image{}, err
		}
		if len(ids) != 1 {
			return Image{}, fmt.Errorf("the content process returned %d images", len(ids))
		}
		img, err := im.Get(t.ctx, ids[0])
		if try >= 3 || !errors.Is(err, ErrImageNotFound) {
			return img, err
		}
		// Removed meanwhile; or a removal failed on the disk, and only this process
		// believes in it, until the image is written again.
		job.Anew = true
	}
}

// pull pulls the image of this name and returns its ID.
func (t *worker) pull(name string, route fetch.Route, progress func(Progress)) ([]string, error) {
	named, err := parseReference(name)
	if err != nil {
		return nil, err
	}
	var img Image
	err = again(t, func() error {
		img, err = t.pullOnce(named, route, progress)
		return err
	})
	return []string{img.ID}, err
}

func (t *worker) pullOnce(named reference.Named, route fetch.Route, progress func(Progress)) (Image, error) {
	sys, err := t.systemContext()
	if err != nil {
		return Image{}, err
	}
	endpoints, err := t.im.registries.endpoints(sys, named)
	if err != nil {
		return Image{}, err
	}
	throughProxy(sys, route, endpoints)
	src, err := openDocker(t.ctx, sys, named)
	if err != nil {
		return Image{}, err
	}
	bytes, entries := t.meter.bytes.Load(), t.meter.entries.Load()
	img, err := t.fromRegistry(sys, named, src, progress)
	if !errors.Is(classOf(err), ErrCorrupt) {
		return img, err
	}
	t.meter.bytes.Store(bytes)
	t.meter.entries.Store(entries)
	if src, openErr := openDocker(t.ctx, sys, named); openErr == nil {
		src.unframe = true
		if again, err := t.fromRegistry(sys, named, src, progress); err == nil {
			return again, nil
		}
	}
	return Image{}, err
}

// worthKeeping reports whether the whole blobs of a pull that ended with err help the
// next one: it failed for want of an answer, or of a caller.
func worthKeeping(err error) bool {
	return errors.Is(err, ErrRegistryUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errClosed)
}

// fromRegistry copies the image behind src into the store, unless it is there.
func (t *worker) fromRegistry(sys *types.SystemContext, named reference.Named, src *openSource, progress func(Progress)) (Image, error) {
	defer src.closeUnlessUsed()
	if err := src.plain(t.ctx, sys, t.meter.limits, t.platform); err != nil {
		return Image{}, err
	}
	found, err := t.inspect(sys, src.source, named)
	if err != nil {
		return Image{}, err
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), found.top)
	if err != nil {
		return Image{}, err
	}
	if img, ok := upToDate(t.im.store, t.platform, named, byDigest); ok && !t.anew {
		policy, err := t.im.registries.policy()
		if err != nil {
			return Image{}, err
		}
		defer policy.Destroy()
		if _, err := policy.IsRunningImageAllowed(t.ctx, src.unparsed(found.instance)); err != nil {
			return Image{}, err
		}
		return img, nil
	}
	if found.instance != nil {
		if err := t.checkInstance(src.source, found.instance, found.size); err != nil {
			return Image{}, err
		}
	}
	name, id := named, ""
	if _, plain := src.source.(*plainSource); plain { // whose manifest may have another digest than the name
		name = nil
		if id, err = t.localID(sys, src.source); err != nil {
			return Image{}, err
		}
	}
	var early earlyCopy
	if name != nil {
		early = func(events chan<- types.ProgressProperties) error {
			return streamer{t, events}.stream(sys, src, found.instance)
		}
	}
	if err := t.copy(sys, src, name, id, early, progress); err != nil {
		return Image{}, err
	}
	img, err := t.im.store.cs.Image(cmp.Or(id, named.String()))
	if err != nil {
		return Image{}, fmt.Errorf("find the image just pulled: %w", err)
	}
	if err := t.im.store.cs.AddNames(img.ID, []string{named.String(), byDigest.String()}); err != nil {
		return Image{}, fmt.Errorf("name the image just pulled: %w", err)
	}
	return t.im.Get(t.ctx, img.ID)
}

// upToDate returns the image that has both names already, if it runs here and is not asked
// for by its platform: which of an index that is the index says.
func upToDate(l *layerStore, platform Platform, names ...reference.Named) (Image, bool) {
	if platform != (Platform{}) {
		return Image{}, false
	}
	img, err := l.cs.Image(names[0].String())
	if err != nil {
		return Image{}, false
	}
	for _, n := range names {
		if !slices.Contains(img.Names, n.String()) {
			return Image{}, false
		}
	}
	out, err := l.describe(img)
	return out, err == nil && out.RunsHere()
}

// copy runs early, which may be nil, and containers/image's copy from src into the store.
// name may be nil: then id, the image's ID, must be given.
func (t *worker) copy(sys *types.SystemContext, src types.ImageReference, name reference.Named, id string, early earlyCopy, progress func(Progress)) error {
	policy, err := t.im.registries.policyFor(t.ctx, src)
	if err != nil {
		return err
	}
	defer policy.Destroy()
	dest, err := imagestorage.Transport.NewStoreReference(t.store, name, id)
	if err != nil {
		return err
	}
	if err := t.markDirty(); err != nil {
		return err
	}
	events := make(chan types.ProgressProperties, 64)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(events, progress)
	}()
	if early != nil {
		err = early(events)
	}
	if err == nil {
		_, err = imagecopy.Image(t.ctx, policy, dest, src, &imagecopy.Options{
			SourceCtx: sys, DestinationCtx: sys,
			Progress: events, ProgressInterval: progressInterval,
			MaxParallelDownloads: uint(t.im.store.opts.MaxParallelDownloads),
		})
	}
	close(events)
	<-watched
	if errors.Is(err, imagestorage.ErrBlobSizeMismatch) {
		return fmt.Errorf("%w: its configuration is not as large as its manifest states: %w", ErrCorrupt, err)
	}
	return err
}

// earlyCopy brings parts of an image into the store before containers/image does the rest.
type earlyCopy func(events chan<- types.ProgressProperties) error

// manifestInfo is what a registry's manifest states about an image.
type manifestInfo struct {
	top      digest.Digest  // of the manifest or index that the reference names
	instance *digest.Digest // of this platform's manifest, nil without an index
	size     int64          // that the index states for it
}

// inspect reads the manifest behind src and refuses what can't run here before
// any layer is downloaded.
func (t *worker) inspect(sys *types.SystemContext, src types.ImageSource, named reference.Named) (manifestInfo, error) {
	var f manifestInfo
	raw, mime, err := src.GetManifest(t.ctx, nil)
	if err != nil {
		return f, err
	}
	top := raw
	if p, ok := src.(*plainSource); ok {
		top = p.top
	}
	if f.top, err = manifest.Digest(top); err != nil {
		return f, err
	}
	if d, ok := named.(reference.Digested); ok {
		if f.top != d.Digest() {
			match, err := manifest.MatchesDigest(top, d.Digest())
			if err != nil {
				return f, err
			}
			if !match {
				return f, fmt.Errorf("%w: the registry sent a manifest with digest %s", ErrCorrupt, f.top)
			}
			f.top = d.Digest()
		}
	}
	mime = manifest.NormalizedMIMEType(mime)
	if !manifest.MIMETypeIsMultiImage(mime) {
		if err := t.checkStated(raw, mime); err != nil {
			return f, err
		}
		return f, t.checkPlatform(sys, src)
	}
	list, err := manifest.ListFromBlob(raw, mime)
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	instance, err := list.ChooseInstance(sys)
	if err != nil {
		return f, fmt.Errorf("%w: its index has no image for %s: %w", ErrUnsupported, t.platform, err)
	}
	entry, err := list.Instance(instance)
	f.instance, f.size = &instance, entry.Size
	return f, err
}

// checkInstance checks the manifest of this platform, that an index names and states to
// have this size.
func (t *worker) checkInstance(src types.ImageSource, instance *digest.Digest, size int64) error {
	raw, mime, err := src.GetManifest(t.ctx, instance)
	if err != nil {
		return err
	}
	if err := t.meter.limits.checkManifest(int64(len(raw))); err != nil {
		return err
	}
	if match, err := manifest.MatchesDigest(raw, *instance); err != nil || !match {
		return fmt.Errorf("%w: the manifest of this platform is not the one of the index (%s)", ErrCorrupt, *instance)
	}
	if err := wrongSize("manifest", *instance, int64(len(raw)), size); err != nil {
		return err
	}
	return t.checkStated(raw, manifest.NormalizedMIMEType(mime))
}

// checkStated checks what a manifest states of its configuration and layers.
func (t *worker) checkStated(raw []byte, mime string) error {
	m, err := manifest.FromBlob(raw, mime)
	if err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	limits := t.meter.limits
	config, layers := m.ConfigInfo(), m.LayerInfos()
	stated := max(config.Size, 0)
	var blobs []types.BlobInfo
	for _, l := range layers {
		blobs = append(blobs, l.BlobInfo)
		if l.Size < -1 || l.Size > limits.Size {
			return fmt.Errorf("%w: its manifest states %d bytes for a layer", ErrCorrupt, l.Size)
		}
		if strings.HasSuffix(l.MediaType, "+encrypted") {
			return fmt.Errorf("%w: its layers are encrypted (%.100q), and there is no key for them here", ErrUnsupported, l.MediaType)
		}
		if t.pulling && len(l.URLs) > 0 {
			// The library would ask that address: perhaps of a service that only this
			// user or this machine reaches.
			return fmt.Errorf("%w: its manifest names an address of its own for a layer (%.200q), and layers are pulled from the registry alone", ErrUnsupported, l.URLs[0])
		}
		stated += max(l.Size, 0)
	}
	if t.pulling {
		t.stated.Store(stated)
	}
	if err := errors.Join(limits.checkConfigSize(config.Size), limits.checkLayers(len(layers))); err != nil {
		return err
	}
	return t.store.state(blobs)
}

// checkPlatform reads and checks the configuration of a single image.
func (t *worker) checkPlatform(sys *types.SystemContext, src types.ImageSource) error {
	unparsed := image.UnparsedInstance(src, nil)
	img, err := image.FromUnparsedImage(t.ctx, sys, unparsed)
	if err != nil {
		return err
	}
	switch t := img.ConfigInfo().MediaType; t {
	case "", v1.MediaTypeImageConfig, manifest.DockerV2Schema2ConfigMediaType, "application/octet-stream":
	default:
		return fmt.Errorf("%w: it is no container image (its configuration is of type %s)", ErrUnsupported, t)
	}
	raw, err := img.ConfigBlob(t.ctx)
	if err != nil {
		return err
	}
	if err := t.meter.limits.checkConfig(raw); err != nil {
		return err
	}
	config, err := img.OCIConfig(t.ctx)
	if err := corruptConfig(err); err != nil {
		return err
	}
	if made := (Image{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}); !t.platform.fits(made) {
		asked := "this machine is"
		if t.platform != (Platform{}) {
			asked = "asked for is"
		}
		return fmt.Errorf("%w: it is made for %s/%s, %s %s", ErrUnsupported, config.OS, config.Architecture, asked, t.platform)
	}
	return nil
}

// openSource is an image reference whose source is open already, so that
// inspecting and copying share one connection, one login and one manifest.
type openSource struct {
	types.ImageReference
	source  types.ImageSource
	used    bool
	unframe bool // leave the first frames of layers out
}

func openDocker(ctx context.Context, sys *types.SystemContext, named reference.Named) (*openSource, error) {
	ref, err := docker.NewReference(named)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadReference, err)
	}
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &openSource{ImageReference: ref, source: src}, nil
}

// NewImageSource returns the open source, once.
func (o *openSource) NewImageSource(_ context.Context, sys *types.SystemContext) (types.ImageSource, error) {
	if o.used {
		return nil, errors.New("the source of this image was opened already")
	}
	o.used = true
	return o.source, nil
}

func (o *openSource) closeUnlessUsed() {
	if !o.used {
		o.source.Close()
	}
}

func makeTmp(parent string) (string, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(parent, "pull-")
}
