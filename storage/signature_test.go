package storage

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	fakes "github.com/subpod/subpod/tests/registry"
)

// TestPolicyVerdicts: each kind of requirement in policy.json, met and not met. An image
// that is here already is asked about again.
func TestPolicyVerdicts(t *testing.T) {
	img := sample(t, "signed")
	f := startBad(t, fakes.FakeOptions{}, img)
	name := f.Addr + "/app:v1"
	dir := t.TempDir()
	gpg, stranger := newGPGKey(t, dir, "signer"), newGPGKey(t, dir, "stranger")
	payload := func(kind, name string, d digest.Digest) string {
		return fmt.Sprintf(`{"critical":{"type":%q,"image":{"docker-manifest-digest":%q},"identity":{"docker-reference":%q}},"optional":{"creator":"test","timestamp":1700000000}}`, kind, d, name)
	}
	atomic := func(name string, d digest.Digest) string { return payload("atomic container signature", name, d) }
	signedBy := func(key string) string {
		return fmt.Sprintf(`{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}`, filepath.Join(dir, key+".gpg"))
	}
	good := gpg(atomic(name, img.digest()))
	for _, c := range []struct {
		name        string
		requirement string
		signature   []byte // in the lookaside directory
		want        error
	}{
		{"accept anything", `{"type":"insecureAcceptAnything"}`, nil, nil},
		{"reject", `{"type":"reject"}`, good, ErrSignature},
		{"signed", signedBy("signer"), good, nil},
		{"not signed", signedBy("signer"), nil, ErrSignature},
		{"signed by another", signedBy("signer"), stranger(atomic(name, img.digest())), ErrSignature},
		{"another image's signature", signedBy("signer"), gpg(atomic(name, digest.FromString("other"))), ErrSignature},
		{"another name's signature", signedBy("signer"), gpg(atomic(f.Addr+"/other:v1", img.digest())), ErrSignature},
		{"no signature at all", signedBy("signer"), []byte("hello"), ErrSignature},
		{"no key", signedBy("missing"), good, ErrSignature},
		{"signed and rejected", signedBy("signer") + `,{"type":"reject"}`, good, ErrSignature},
	} {
		for _, place := range []string{"file", "http"} {
			t.Run(c.name+" "+place, func(t *testing.T) {
				lookaside := t.TempDir()
				if c.signature != nil {
					writeFile(t, filepath.Join(lookaside, "app@"+strings.Replace(img.digest().String(), ":", "=", 1), "signature-1"), string(c.signature))
				}
				at := "file://" + lookaside
				if place == "http" {
					server := httptest.NewServer(http.FileServer(http.Dir(lookaside)))
					defer server.Close()
					at = server.URL
				}
				s := policyStore(t, f, c.requirement, "lookaside: "+at)
				wantVerdict(t, s, name, c.want)
			})
		}
	}
	t.Run("here already", func(t *testing.T) {
		s := policyStore(t, f, `{"type":"insecureAcceptAnything"}`, "lookaside: file:///nonexistent")
		pullRef(t, s, name)
		writeFile(t, s.layers.opts.PolicyJSON, policyOf(signedBy("signer")))
		wantVerdict(t, s, name, ErrSignature)
	})
	t.Run("lookaside with a bad certificate", func(t *testing.T) {
		lookaside := t.TempDir()
		writeFile(t, filepath.Join(lookaside, "app@"+strings.Replace(img.digest().String(), ":", "=", 1), "signature-1"), string(good))
		server := httptest.NewTLSServer(http.FileServer(http.Dir(lookaside)))
		defer server.Close()
		tls := httptest.NewTLSServer(f)
		defer tls.Close()
		host := strings.TrimPrefix(tls.URL, "https://")
		s := policyStore(t, f, signedBy("signer"), "lookaside: "+server.URL)
		writeFile(t, filepath.Join(s.layers.opts.CertsDir, host, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})))
		// Both servers have the certificate of net/http/httptest, so this one is known.
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: host + "/app:v1"})
		if !errors.Is(err, ErrSignature) { // of another name, but it was read
			t.Errorf("got %v, want ErrSignature", err)
		}
		if err := os.Remove(filepath.Join(s.layers.opts.CertsDir, host, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: host + "/app:v1"}); !errors.Is(err, ErrRegistryUnavailable) {
			t.Errorf("got %v, want ErrRegistryUnavailable", err)
		}
	})
	t.Run("lookaside whose certificate nobody knows", func(t *testing.T) {
		testUnknownLookaside(t, f, signedBy("signer"))
	})
	t.Run("sigstore", func(t *testing.T) { testSigstore(t, payload) })
}

// testUnknownLookaside pulls from a registry whose certificate is known, and a server of
// signatures whose certificate is not, which is asked for nothing then.
func testUnknownLookaside(t *testing.T, f *fakes.Fake, requirement string) {
	asked := false
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = true
		http.NotFound(w, r)
	}))
	cert, err := tls.LoadX509KeyPair(selfSigned(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	registry := httptest.NewTLSServer(f)
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "https://")
	s := policyStore(t, f, requirement, "lookaside: "+server.URL)
	writeFile(t, filepath.Join(s.layers.opts.CertsDir, host, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: registry.Certificate().Raw})))
	_, err = s.Images.Pull(context.Background(), PullRequest{Ref: host + "/app:v1"})
	if err == nil || !strings.Contains(err.Error(), "certificate") || asked {
		t.Errorf("%v; the server was asked: %t", err, asked)
	}
}

// testSigstore signs as cosign does.
func testSigstore(t *testing.T, payload func(kind, name string, d digest.Digest) string) {
	img := sample(t, "sigstore")
	key, other := newKey(t), newKey(t)
	for _, c := range []struct {
		name  string
		key   *ecdsa.PrivateKey
		of    digest.Digest
		under string
		want  error
	}{
		{"signed", key, img.digest(), "app", nil},
		{"signed by another", other, img.digest(), "app", ErrSignature},
		{"another image", key, digest.FromString("other"), "app", ErrSignature},
		{"another name", key, img.digest(), "other", ErrSignature},
		{"not signed", nil, "", "", ErrSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := startBad(t, fakes.FakeOptions{}, img)
			if c.key != nil {
				pushSignature(t, f, img, c.key, payload("cosign container image signature", f.Addr+"/"+c.under+":v1", c.of))
			}
			der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			public := writeFile(t, filepath.Join(t.TempDir(), "key.pub"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
			s := policyStore(t, f, fmt.Sprintf(`{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}`, public), "use-sigstore-attachments: true")
			wantVerdict(t, s, f.Addr+"/app:v1", c.want)
		})
	}
}

// pushSignature attaches a signature to img as cosign does: as an image of its own.
func pushSignature(t *testing.T, f *fakes.Fake, img built, key *ecdsa.PrivateKey, payload string) {
	t.Helper()
	sum := sha256.Sum256([]byte(payload))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	config := []byte("{}")
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []v1.Descriptor{{MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Digest: digest.FromString(payload), Size: int64(len(payload)),
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}}}}
	m.SchemaVersion = 2
	tag := strings.Replace(img.digest().String(), ":", "-", 1) + ".sig"
	f.Push("app", tag, v1.MediaTypeImageManifest, mustJSON(t, m), map[digest.Digest][]byte{digest.FromString(payload): []byte(payload), digest.FromBytes(config): config})
}

// policyStore is a store whose policy has these requirements, and whose registries.d has
// this for all registries.
func policyStore(t *testing.T, f *fakes.Fake, requirements, registriesD string) *Store {
	t.Helper()
	s := badStore(t, f)
	writeFile(t, s.layers.opts.PolicyJSON, policyOf(requirements))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(s.layers.opts.Home, ".config"))
	writeFile(t, filepath.Join(s.layers.opts.Home, ".config/containers/registries.d/default.yaml"), "default-docker:\n  "+registriesD+"\n")
	return s
}

func policyOf(requirements string) string {
	return `{"default":[{"type":"reject"}],"transports":{"docker":{"":[` + requirements + `]}}}`
}

func wantVerdict(t *testing.T, s *Store, ref string, want error) {
	t.Helper()
	_, err := s.Images.Pull(context.Background(), PullRequest{Ref: ref})
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("got %v, want %v", err, want)
	}
}

// newGPGKey writes the public key name.gpg into dir and returns what signs with it.
func newGPGKey(t *testing.T, dir, name string) func(payload string) []byte {
	t.Helper()
	key, err := openpgp.NewEntity(name, "", name+"@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+".gpg"), public.String())
	return func(payload string) []byte {
		var out bytes.Buffer
		w, err := openpgp.Sign(&out, key, nil, nil)
		if err == nil {
			_, err = w.Write([]byte(payload))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
