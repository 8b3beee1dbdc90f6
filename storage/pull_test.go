package storage

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// pullEnv is a store with a plain registry that it may use.
func pullEnv(t *testing.T) (*Store, *registry) {
	t.Helper()
	r := startRegistry(t, false)
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, r.host)
	return openStore(t, o), r
}

func pullRef(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Images.Pull(context.Background(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// wantClean fails the test unless the store holds nothing but what images need.
func wantClean(t testing.TB, s *Store, layers int) {
	t.Helper()
	list, err := s.layers.cs.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != layers {
		t.Errorf("the store has %d layers, want %d", len(list), layers)
	}
	dirs, err := filepath.Glob(filepath.Join(s.layers.dirs.overlay(), "????????????????????????????????????????????????????????????????"))
	if err != nil || len(dirs) != layers {
		t.Errorf("the store has %d layer directories, want %d (%v)", len(dirs), layers, err)
	}
	root := s.layers.opts.Root
	for _, dir := range []string{s.layers.dirs.tmp(), root + "/overlay/staging", root + "/overlay/tempdirs", root + "/overlay-layers/tmp", root + "/vfs-layers/tmp"} {
		if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
			t.Errorf("%s holds %v", dir, left)
		}
	}
}

func TestPullFillsImage(t *testing.T) {
	s, r := pullEnv(t)
	img := sample(t, "one")
	r.push(t, "team/app", "v1", img)
	var last Progress
	got, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/team/app:v1", Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != img.id() {
		t.Errorf("ID %s, want the config digest %s", got.ID, img.id())
	}
	if want := []string{r.host + "/team/app:v1"}; !slices.Equal(got.RepoTags, want) {
		t.Errorf("RepoTags %v, want %v", got.RepoTags, want)
	}
	if want := []string{r.host + "/team/app@" + img.digest().String()}; !slices.Equal(got.RepoDigests, want) {
		t.Errorf("RepoDigests %v, want %v", got.RepoDigests, want)
	}
	if got.User != "1002:1003" || got.Labels["mark"] != "one" || got.Config.WorkingDir != "/srv" || got.OS != "linux" ||
		got.Created.Year() != 2024 || got.Size == 0 || got.Pinned || len(got.History) != 2 || got.Digest != img.digest() {
		t.Errorf("facts are wrong: %+v", got)
	}
	if last.Done != 3 || last.Blobs != 3 || last.Downloaded == 0 {
		t.Errorf("progress ended at %+v, want 3 blobs", last)
	}
	for _, ref := range []string{got.ID, "sha256:" + got.ID, got.ID[:12], r.host + "/team/app:v1",
		r.host + "/team/app@" + img.digest().String(), r.host + "/team/app:other@" + img.digest().String()} {
		if found, err := s.Images.Get(context.Background(), ref); err != nil || found.ID != got.ID {
			t.Errorf("Image(%s): %v", ref, err)
		}
	}
	for ref, want := range map[string]error{"Bad:/ref": ErrBadReference, "team/app:v1": ErrImageNotFound,
		strings.Repeat("0", 64): ErrImageNotFound, r.host + "/team/app:v2": ErrImageNotFound} {
		if _, err := s.Images.Get(context.Background(), ref); !errors.Is(err, want) {
			t.Errorf("Image(%s): %v, want %v", ref, err, want)
		}
	}
	wantClean(t, s, 2)
}

func TestPullMovedTag(t *testing.T) {
	s, r := pullEnv(t)
	one, two := sample(t, "one"), sample(t, "two")
	ref := r.host + "/app:latest"
	r.push(t, "app", "latest", one)
	pullRef(t, s, ref)
	r.push(t, "app", "latest", two)
	if got := pullRef(t, s, ref); got.ID != two.id() {
		t.Errorf("pulled %s, want %s", got.ID, two.id())
	}
	old, err := s.Images.Get(context.Background(), one.id())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{r.host + "/app@" + one.digest().String()}; len(old.RepoTags) != 0 || !slices.Equal(old.RepoDigests, want) {
		t.Errorf("old image has tags %v, digests %v, want none, %v", old.RepoTags, old.RepoDigests, want)
	}
	if err := s.Images.Remove(context.Background(), one.id()); err != nil {
		t.Fatal(err)
	}
	if err := s.Images.Remove(context.Background(), one.id()); err != nil {
		t.Errorf("second removal: %v", err)
	}
	if images, err := s.Images.List(context.Background()); err != nil || len(images) != 1 {
		t.Errorf("images %v %v, want one", images, err)
	}
	wantClean(t, s, 2) // the layers of "two": both base layers differ by their mark
}

func TestPullIndexAndPlatforms(t *testing.T) {
	s, r := pullEnv(t)
	mine := sample(t, "mine")
	other := build(t, imageSpec{arch: "s390x", layers: []layer{{"f": {content: "s390x"}}}})
	r.push(t, "multi", "mine", mine)
	r.push(t, "multi", "other", other)
	idx := index(t, map[string]built{"amd64": mine, "s390x": other})
	r.pushManifest(t, "multi", "both", v1.MediaTypeImageIndex, idx)
	r.pushManifest(t, "multi", "foreign", v1.MediaTypeImageIndex, index(t, map[string]built{"s390x": other}))
	got := pullRef(t, s, r.host+"/multi:both")
	if want := r.host + "/multi@" + digest.FromBytes(idx).String(); got.ID != mine.id() || !slices.Contains(got.RepoDigests, want) {
		t.Errorf("pulled %s %v, want %s with the index's digest %s", got.ID, got.RepoDigests, mine.id(), want)
	}
	if found, err := s.Images.Get(context.Background(), r.host+"/multi@"+mine.digest().String()); err != nil || found.ID != mine.id() {
		t.Errorf("not found by its own manifest's digest: %v", err)
	}
	for _, tag := range []string{"other", "foreign"} {
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/multi:" + tag})
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "amd64") {
			t.Errorf("pull of %s: %v, want ErrUnsupported that names this platform", tag, err)
		}
	}
	wantClean(t, s, 2)
}

func TestPullMirrorAndNormalisation(t *testing.T) {
	s, r := pullEnv(t)
	img := sample(t, "hub")
	r.push(t, "library/busybox", "latest", img)
	writeFile(t, s.layers.opts.RegistriesConf, fmt.Sprintf("[[registry]]\nprefix = \"docker.io\"\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", r.host))
	got := pullRef(t, s, "busybox")
	if want := []string{"docker.io/library/busybox:latest"}; !slices.Equal(got.RepoTags, want) {
		t.Errorf("RepoTags %v, want %v", got.RepoTags, want)
	}
	if _, err := s.Images.Get(context.Background(), "docker.io/busybox"); err != nil {
		t.Error(err)
	}
}

func TestPullTLS(t *testing.T) {
	r := startRegistry(t, true)
	img := sample(t, "tls")
	r.push(t, "app", "v1", img)
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/app:v1"})
	if !errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), "certs.d") {
		t.Errorf("unknown CA: %v, want ErrRegistryUnavailable that names certs.d", err)
	}
	writeFile(t, filepath.Join(s.layers.opts.CertsDir, r.host, "ca.crt"), mustRead(t, r.ca))
	if got := pullRef(t, s, r.host+"/app:v1"); got.ID != img.id() {
		t.Errorf("pulled %s, want %s", got.ID, img.id())
	}
}

func TestPullPolicy(t *testing.T) {
	s, r := pullEnv(t)
	r.push(t, "app", "v1", sample(t, "x"))
	writeFile(t, s.layers.opts.PolicyJSON, `{"default":[{"type":"reject"}]}`)
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/app:v1"}); !errors.Is(err, ErrSignature) {
		t.Errorf("rejected by policy: %v, want ErrSignature", err)
	}
	wantClean(t, s, 0)
	writeFile(t, s.layers.opts.PolicyJSON, `{"default":[{"type":"insecureAcceptAnything"}]}`)
	pullRef(t, s, r.host+"/app:v1")
	// The policy also counts for an image that is here already.
	writeFile(t, s.layers.opts.PolicyJSON, `{"default":[{"type":"reject"}]}`)
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/app:v1"}); !errors.Is(err, ErrSignature) {
		t.Errorf("rejected by policy, up to date: %v, want ErrSignature", err)
	}
}

// fakeStore is a store that may use f's registry.
func fakeStore(t *testing.T, f *fakeRegistry) *Store {
	t.Helper()
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, f.host)
	o.PullTimeout = patience
	return openStore(t, o)
}

func TestPullHostile(t *testing.T) {
	img := sample(t, "hostile")
	blob := img.layers[1]
	isBlob := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, blob.String()) }
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	status := func(match func(*http.Request) bool, code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if match(r) {
				http.Error(w, "told to", code)
			}
			return match(r)
		}
	}
	hang := func(match func(*http.Request) bool, first []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !match(r) {
				return false
			}
			if len(first) > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(img.blobs[blob])))
				w.Write(first)
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			return true
		}
	}
	body := func(data []byte, claim int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(claim))
			w.Write(data)
			return true
		}
	}
	any := func(r *http.Request) bool { return true }
	good := img.blobs[blob]
	wrong := slices.Clone(good)
	wrong[len(wrong)/2] ^= 0xff
	for name, c := range map[string]struct {
		hook func(http.ResponseWriter, *http.Request) bool
		want error
	}{
		"500 everywhere":    {status(any, 500), ErrRegistryUnavailable},
		"500 manifest":      {status(isManifest, 500), ErrRegistryUnavailable},
		"503 blob":          {status(isBlob, 503), ErrRegistryUnavailable},
		"404 manifest":      {status(isManifest, 404), ErrImageNotFound},
		"403 manifest":      {status(isManifest, 403), ErrUnauthorized},
		"hang everywhere":   {hang(any, nil), ErrRegistryUnavailable},
		"hang before blob":  {hang(isBlob, nil), ErrRegistryUnavailable},
		"hang in blob":      {hang(isBlob, good[:len(good)/2]), ErrRegistryUnavailable},
		"wrong digest":      {body(wrong, len(wrong)), ErrCorrupt},
		"truncated at once": {body(good[:len(good)/2], len(good)), ErrRegistryUnavailable},
		"truncated blob":    {body(good[:len(good)/2], len(good)/2), ErrCorrupt},
		"manifest is junk": {func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				w.Write([]byte(`{"schemaVersion":2,"layers":17`))
			}
			return isManifest(r)
		}, ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, img, c.hook)
			s := fakeStore(t, f)
			if strings.HasPrefix(name, "hang") {
				s.layers.opts.PullTimeout = time.Second
			}
			err := within(t, "the pull", func() error {
				_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
				return err
			})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			wantClean(t, s, 0)
			if images, err := s.Images.List(context.Background()); err != nil || len(images) != 0 {
				t.Errorf("images left: %v %v", images, err)
			}
			// The store works as before.
			s.layers.opts.PullTimeout = patience
			f.setHook(nil)
			pullRef(t, s, f.host+"/app:v1")
			wantClean(t, s, 2)
		})
	}
}

func TestPullConnectionRefused(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, "127.0.0.1:1")
	s := openStore(t, o)
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: "127.0.0.1:1/app:v1"}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("got %v, want ErrRegistryUnavailable", err)
	}
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: "UPPER/case"}); !errors.Is(err, ErrBadReference) {
		t.Errorf("got %v, want ErrBadReference", err)
	}
}

func TestPullBasicAuth(t *testing.T) {
	img := sample(t, "auth")
	f := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "joe" && password == "s3cret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	s := fakeStore(t, f)
	encoded := base64.StdEncoding.EncodeToString([]byte("joe:s3cret"))
	for name, c := range map[string]struct {
		auth *Auth
		want error
	}{
		"none":     {nil, ErrUnauthorized},
		"wrong":    {&Auth{Username: "joe", Password: "nope"}, ErrUnauthorized},
		"not b64":  {&Auth{Auth: "*"}, ErrUnauthorized},
		"password": {&Auth{Username: "joe", Password: "s3cret"}, nil},
		"encoded":  {&Auth{Auth: encoded}, nil},
	} {
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1", Auth: c.auth}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	writeFile(t, s.layers.opts.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.host, encoded))
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"}); err != nil {
		t.Errorf("with auth.json: %v", err)
	}
}

func TestPullTokenAuth(t *testing.T) {
	img := sample(t, "token")
	f := &fakeRegistry{}
	*f = *startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if user, password, ok := r.BasicAuth(); !ok || user != "joe" || password != "s3cret" {
				http.Error(w, `{"errors":[{"code":"DENIED","message":"wrong password"}]}`, http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"opensesame","expires_in":300}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer opensesame" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:app:pull"`, r.Host))
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		return true
	})
	s := fakeStore(t, f)
	for name, c := range map[string]struct {
		auth *Auth
		want error
	}{
		"none":           {nil, ErrUnauthorized},
		"wrong":          {&Auth{Username: "joe", Password: "nope"}, ErrUnauthorized},
		"password":       {&Auth{Username: "joe", Password: "s3cret"}, nil},
		"registry token": {&Auth{RegistryToken: "opensesame"}, nil},
		"wrong token":    {&Auth{RegistryToken: "no"}, ErrUnauthorized},
	} {
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1", Auth: c.auth}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestPullOnceForAll(t *testing.T) {
	img := sample(t, "once")
	release := make(chan struct{})
	var waiting atomic.Int32
	f := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			waiting.Add(1)
			<-release
		}
		return false
	})
	s := fakeStore(t, f)
	first, cancel := context.WithCancel(context.Background())
	errs := make(chan error, 5)
	go func() {
		_, err := s.Images.Pull(first, PullRequest{Ref: f.host + "/app:v1"})
		errs <- err
	}()
	for deadline := time.Now().Add(patience); waiting.Load() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no blob was asked for")
		}
	}
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			got, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
			if err != nil || got.ID != img.id() {
				t.Errorf("waiting caller: %v", err)
			}
		})
	}
	for deadline := time.Now().Add(patience); s.Images.pulls.callers() < 5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the others do not wait for the pull")
		}
	}
	cancel() // the caller that started it gives up; the others get their image
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled caller: %v", err)
	}
	close(release)
	others.Wait()
	for d := range img.blobs {
		if n := f.count("GET /v2/app/blobs/" + d.String()); d != digest.FromBytes(img.config) && n != 1 {
			t.Errorf("blob %s was fetched %d times", d, n)
		}
	}
}

// callers counts those who wait for pulls.
func (p *pulls) callers() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flights {
		n += f.waiting
	}
	return n
}

func TestPullCancelled(t *testing.T) {
	img := sample(t, "cancelled")
	reached := make(chan struct{}, 8)
	f := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, img.layers[1].String()) {
			reached <- struct{}{}
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := fakeStore(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-reached:
		case <-time.After(patience):
		}
		cancel()
	}()
	if _, err := s.Images.Pull(ctx, PullRequest{Ref: f.host + "/app:v1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	// The pull itself ends after its only caller has gone.
	s.Images.pulls.running.Wait()
	s.Images.work.Wait()
	wantClean(t, s, 0)
	f.setHook(nil)
	pullRef(t, s, f.host+"/app:v1")
}
