package cri

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// front starts a front of the test registry. Images in it are named
// "addr/docker.io/library/busybox".
func front(t *testing.T, o registry.FrontOptions) *registry.Front {
	t.Helper()
	f := registry.NewFront(node.Registry(t), o)
	t.Cleanup(f.Close)
	return f
}

// insecure is a registries.conf for fronts without TLS.
func insecure(fronts ...*registry.Front) string {
	conf := "unqualified-search-registries = [\"docker.io\"]\n"
	for _, f := range fronts {
		conf += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", f.Addr)
	}
	return conf
}

func TestPullOnce(t *testing.T) {
	f := front(t, registry.FrontOptions{Fault: func(http.ResponseWriter, *http.Request) bool {
		time.Sleep(300 * time.Millisecond) // long enough that the pulls meet, however late a client starts
		return false
	}})
	n := node.Start(t, node.Options{Registries: insecure(f)})
	var wg sync.WaitGroup
	for _, image := range []string{"docker.io/library/busybox", "docker.io/library/busybox", "docker.io/library/busybox",
		"registry.k8s.io/e2e-test-images/nginx:1.14-2", "registry.k8s.io/pause:3.9", "registry.k8s.io/e2e-test-images/nonewprivs:1.3"} {
		wg.Go(func() {
			if _, err := n.TryCrictl("pull", f.Addr+"/"+image); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var images struct{ Images []struct{ ID string } }
	n.CrictlJSON(&images, "images", "-o", "json")
	if len(images.Images) != 4 {
		t.Errorf("%d images, want 4", len(images.Images))
	}
	for digest, count := range f.Blobs() {
		// Different images may have fetched a layer that they share.
		if count > 2 {
			t.Errorf("blob %s was fetched %d times", digest, count)
		}
	}
}

func TestPullWithCredentials(t *testing.T) {
	f := front(t, registry.FrontOptions{User: "alice", Password: "se:cret"})
	n := node.Start(t, node.Options{Registries: insecure(f)})
	image := f.Addr + "/docker.io/library/busybox:latest"
	if _, err := n.TryCrictl("pull", image); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
		t.Errorf("without credentials: %v, want PermissionDenied", err)
	}
	if _, err := n.TryCrictl("pull", "--creds", "alice:wrong", image); err == nil || strings.Contains(err.Error(), "wrong") && strings.Contains(err.Error(), "alice:wrong,") {
		t.Errorf("with a wrong password: %v", err)
	}
	n.Crictl("pull", "--creds", "alice:se:cret", image)
	n.Crictl("rmi", image)
	n.Crictl("pull", "--auth", base64.StdEncoding.EncodeToString([]byte("alice:se:cret")), image)
	n.Crictl("rmi", image)
	if _, err := n.TryCrictl("pull", image); err == nil {
		t.Error("credentials of an earlier request were used again")
	}
	if strings.Contains(n.Log(), "se:cret") {
		t.Error("the password is in the daemon's log")
	}
	auth := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.Addr, base64.StdEncoding.EncodeToString([]byte("alice:se:cret")))
	dir := n.XDG + "/containers"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/auth.json", []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Crictl("pull", image)
}

func TestPullOverTLS(t *testing.T) {
	f := front(t, registry.FrontOptions{TLS: true})
	n := node.Start(t, node.Options{Registries: "unqualified-search-registries = [\"docker.io\"]\n"})
	image := f.Addr + "/docker.io/library/busybox:latest"
	if _, err := n.TryCrictl("pull", image); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	n.WriteHome(".config/containers/certs.d/"+f.Addr+"/ca.crt", string(ca))
	n.Crictl("pull", image)
}

// TestBadPulls: each has its error and its code, and leaves nothing in the store.
func TestBadPulls(t *testing.T) {
	config, layer := blobsOf(t, busybox)
	corruptConfig := front(t, registry.FrontOptions{Fault: otherBytes(config)})
	corruptLayer := front(t, registry.FrontOptions{Fault: otherBytes(layer)})
	broken := front(t, registry.FrontOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return true
	}})
	release := make(chan struct{})
	hanging := front(t, registry.FrontOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}})
	t.Cleanup(func() { close(release) })
	healthy := front(t, registry.FrontOptions{})
	n := node.Start(t, node.Options{
		Registries: insecure(corruptConfig, corruptLayer, broken, hanging, healthy) + "[[registry]]\nlocation = \"127.0.0.1:1\"\ninsecure = true\n",
		Config:     "[images]\npull_timeout = \"5s\"\n",
	})
	cri := n.CRI()
	const path = "/docker.io/library/busybox:latest"
	for _, c := range []struct {
		name, image string
		code        codes.Code
		words       []string
	}{
		{"no such image", healthy.Addr + "/no/such/image:1", codes.NotFound, []string{"no/such/image:1"}},
		{"no such tag", healthy.Addr + "/docker.io/library/busybox:none", codes.NotFound, []string{"busybox:none"}},
		{"not a reference", "Not A Reference!", codes.InvalidArgument, []string{"Not A Reference!"}},
		{"empty", "", codes.InvalidArgument, nil},
		{"corrupt config", corruptConfig.Addr + path, codes.DataLoss, []string{corruptConfig.Addr, "digest"}},
		{"corrupt layer", corruptLayer.Addr + path, codes.DataLoss, []string{corruptLayer.Addr}},
		// Unknown, with the word that the kubelet knows in front of the message.
		{"registry answers 500", broken.Addr + path, codes.Unknown, []string{"RegistryUnavailable", "500"}},
		{"registry hangs", hanging.Addr + path, codes.Unknown, []string{"RegistryUnavailable"}},
		{"nobody listens", "127.0.0.1:1" + path, codes.Unknown, []string{"RegistryUnavailable", "refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// More than the configured timeouts, and less than a registry that hangs.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			_, err := cri.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}})
			if got := status.Code(err); got != c.code {
				t.Errorf("code %v, want %v: %v", got, c.code, err)
			}
			for _, word := range c.words {
				if err != nil && !strings.Contains(err.Error(), word) {
					t.Errorf("no %q in: %v", word, err)
				}
			}
		})
	}
	list, err := cri.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 0 {
		t.Errorf("images after failed pulls: %v, %v", list.GetImages(), err)
	}
	storeIsEmpty(t, n)
}

// blobsOf returns the digests of an image's configuration and first layer.
func blobsOf(t *testing.T, image string) (config, layer string) {
	t.Helper()
	repository, tag, _ := strings.Cut(image, ":")
	req, err := http.NewRequest(http.MethodGet, "http://"+node.Registry(t)+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.NewDecoder(res.Body).Decode(&manifest); err != nil || len(manifest.Layers) == 0 {
		t.Fatalf("manifest of %s: %+v, %v", image, manifest, err)
	}
	return manifest.Config.Digest, manifest.Layers[0].Digest
}

// otherBytes answers a request for one blob by something else.
func otherBytes(digest string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+digest) {
			return false
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write([]byte("\x1f\x8b these are not the bytes that you are looking for"))
		return true
	}
}

// storeIsEmpty checks that no blob or layer is on the disk.
func storeIsEmpty(t *testing.T, n *node.Node) {
	t.Helper()
	// The daemon's user is root there, over all subordinate users.
	out := n.Enter("sh", "-c", `find "$@" -type f -size +100k ! -name state.db ! -name '*reserve' 2>/dev/null; true`, "sh",
		n.DataDir, n.Home+"/.cache", n.Home+"/.local", os.Getenv("TMPDIR"), n.XDG)
	if out != "" {
		t.Errorf("on the disk without an image:\n%s", out)
	}
}

func TestLoad(t *testing.T) {
	n := node.Start(t, node.Options{Registries: "unqualified-search-registries = [\"docker.io\"]\n"})
	made := node.Path(t, node.Images)
	noFile := made + "/missing.tar"
	if _, err := n.Subpod("load", "oci-archive:"+noFile); err == nil || !strings.Contains(err.Error(), noFile) {
		t.Errorf("load of a file that is not there: %v", err)
	}
	for i, source := range []string{
		"oci:" + made + "/busybox.oci",
		"oci-archive:" + made + "/busybox.oci.tar",
		"docker-archive:" + made + "/busybox.docker.tar",
		made + "/busybox.oci", made + "/busybox.oci.tar", made + "/busybox.docker.tar",
	} {
		out, err := n.Subpod("load", source)
		if err != nil {
			t.Errorf("load %s: %v", source, err)
			continue
		}
		expect(t, "load "+source, out, busybox)
		p := runPod(t, n, fmt.Sprintf("loaded-%d", i), nil)
		id := p.run("c", sh("echo it runs"))
		waitExited(t, n, id)
		expect(t, "logs", n.Crictl("logs", id), "it runs")
		n.Crictl("rmp", "-f", p.id)
		n.Crictl("rmi", busybox)
	}
	storeIsEmpty(t, n)
}
