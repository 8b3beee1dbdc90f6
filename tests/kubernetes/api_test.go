package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

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
