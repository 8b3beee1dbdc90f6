package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var podStart = flag.Int("pod-start", 0, "measure how long so many pods take to run, in a cluster")

// TestPodStart measures pods from their creation to the API server's saying that they run:
// one at a time, four at a time and all at once.
func TestPodStart(t *testing.T) {
	if *podStart == 0 {
		t.Skip("a measurement: make bench-kubernetes")
	}
	c := startCluster(t, "", []string{"tcp:6443"})
	a := c.api()
	a.start("warm", 1, 1)
	for _, atOnce := range []int{1, 4, *podStart} {
		took, all := a.start(fmt.Sprintf("at-%d", atOnce), *podStart, atOnce)
		t.Logf("%d pods, %d at a time: median %v, 95 of 100 %v, all in %v", *podStart, atOnce,
			took[len(took)/2], took[(len(took)*95-1)/100], all.Round(time.Millisecond))
	}
}

// An apiServer asks the cluster's API server, from the host: a kubectl takes longer than a pod.
type apiServer struct {
	t      testing.TB
	client http.Client
}

// api returns one with the administrator's certificate. The node's port 6443 is open on the host.
func (c *cluster) api() *apiServer {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.DataDir, "kubernetes/admin.conf"))
	must(c.t, err)
	var conf struct {
		Clusters []struct {
			Cluster struct {
				CA string `yaml:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate string `yaml:"client-certificate-data"`
				Key         string `yaml:"client-key-data"`
			}
		}
	}
	must(c.t, yaml.Unmarshal(data, &conf))
	if len(conf.Clusters) != 1 || len(conf.Users) != 1 {
		c.t.Fatal("admin.conf is not of one cluster and one user")
	}
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		must(c.t, err)
		return b
	}
	certificate, err := tls.X509KeyPair(decode(conf.Users[0].User.Certificate), decode(conf.Users[0].User.Key))
	must(c.t, err)
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(decode(conf.Clusters[0].Cluster.CA))
	return &apiServer{t: c.t, client: http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: ca, Certificates: []tls.Certificate{certificate}, ServerName: "kubernetes"},
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:6443")
		},
	}}}
}

// do returns the body of an answer, which the caller closes.
func (a *apiServer) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://kubernetes"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, said)
	}
	return resp.Body, nil
}

const podsPath = "/api/v1/namespaces/default/pods"

// watched is what is used of a watch's event on a pod.
type watched struct {
	Type   string
	Object struct {
		Metadata struct{ Name string }
		Status   struct{ Phase string }
	}
}

// start creates pods with a label, so many of them at once, waits until each runs, and
// removes them. It returns how long each took, sorted, and all of them.
func (a *apiServer) start(label string, pods, atOnce int) (took []time.Duration, all time.Duration) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), readyTimeout)
	defer cancel()
	body, err := a.do(ctx, "GET", podsPath+"?watch=true&labelSelector=bench%3D"+label, nil)
	must(a.t, err)
	defer body.Close()
	events := make(chan watched, 100)
	go func() {
		defer close(events)
		for decoder := json.NewDecoder(body); ; {
			var e watched
			if decoder.Decode(&e) != nil {
				return
			}
			events <- e
		}
	}()
	created := map[string]time.Time{}
	create := func() {
		name := fmt.Sprintf("%s-%d", label, len(created))
		created[name] = time.Now()
		made, err := a.do(ctx, "POST", podsPath, podToStart(name, label))
		must(a.t, err)
		made.Close()
	}
	begin := time.Now()
	for range min(atOnce, pods) {
		create()
	}
	running := map[string]bool{}
	for len(took) < pods {
		e, open := <-events
		if !open {
			a.t.Fatalf("the watch ended, %d of %d pods run", len(took), pods)
		}
		name := e.Object.Metadata.Name
		if e.Object.Status.Phase != "Running" || running[name] {
			continue
		}
		running[name] = true
		took = append(took, time.Since(created[name]).Round(time.Millisecond))
		if len(created) < pods {
			create()
		}
	}
	all = time.Since(begin)
	gone, err := a.do(ctx, "DELETE", podsPath+"?labelSelector=bench%3D"+label, nil)
	must(a.t, err)
	gone.Close()
	for left := pods; left > 0; {
		e, open := <-events
		if !open {
			a.t.Fatalf("the watch ended, %d pods are left", left)
		}
		if e.Type == "DELETED" {
			left--
		}
	}
	slices.Sort(took)
	return took, all
}

func podToStart(name, label string) any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"bench": label}},
		"spec": map[string]any{
			"terminationGracePeriodSeconds": 0,
			"containers": []any{map[string]any{
				"name": "c", "image": busybox, "imagePullPolicy": "IfNotPresent", "command": []string{"sleep", "36000"},
			}},
		},
	}
}
