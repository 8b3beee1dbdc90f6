// Package nodes knows the nodes of a Kubernetes cluster, by the credentials of this node's
// kubelet: it follows them, says what others need of this one, and tells which tunnels
// lead from here to the others' pods.
package nodes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	// pingTimeout is how long an API server may be silent before it is pinged, and how long
	// the answer may take: else a watch of one that was cut off would never end.
	pingTimeout = 15 * time.Second
	// answerTimeout bounds a request that is no watch.
	answerTimeout = 30 * time.Second
	// maxAnswer bounds what is kept of an answer.
	maxAnswer = 64 << 20
	// maxMessage bounds what is kept of the reason of a refusal.
	maxMessage = 64 << 10
)

// ErrForbidden says that the cluster does not allow a request.
var ErrForbidden = errors.New("forbidden by the cluster")

// Client talks to the API server as this node.
type Client struct {
	name   string
	server *url.URL
	http   *http.Client
}

// kubeConfig is what is needed of a kubelet's.
type kubeConfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CAData string `json:"certificate-authority-data"`
			CAFile string `json:"certificate-authority"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			CertFile string `json:"client-certificate"`
			KeyFile  string `json:"client-key"`
			CertData string `json:"client-certificate-data"`
			KeyData  string `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

// Open reads a kubelet's configuration file. The node's name is that of its certificate. Close
// ends what the client leaves open.
func Open(path string) (*Client, error) {
	c, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("the kubelet's credentials (%s): %w", path, err)
	}
	return c, nil
}

func open(path string) (*Client, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var k kubeConfig
	if err := yaml.Unmarshal(text, &k); err != nil {
		return nil, err
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, fmt.Errorf("%d clusters and %d users, want one of each", len(k.Clusters), len(k.Users))
	}
	cluster := k.Clusters[0].Cluster
	server, err := url.Parse(cluster.Server)
	if err != nil {
		return nil, err
	}
	if server.Scheme != "https" || server.Host == "" {
		return nil, fmt.Errorf("the server %q is no https URL", cluster.Server)
	}
	ca, err := dataOr(cluster.CAData, cluster.CAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA is no certificate")
	}
	// The kubelet replaces its certificate long before it expires.
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.certificate() }
	cert, err := load(nil)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	name, ok := strings.CutPrefix(leaf.Subject.CommonName, "system:node:")
	if !ok {
		return nil, fmt.Errorf("the certificate is of %q, not of a node", leaf.Subject.CommonName)
	}
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, GetClientCertificate: load, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: pingTimeout, ForceAttemptHTTP2: true,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout},
	}
	return &Client{name: name, server: server, http: &http.Client{Transport: transport}}, nil
}

func (k *kubeConfig) certificate() (*tls.Certificate, error) {
	u := k.Users[0].User
	certificate, err := dataOr(u.CertData, u.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := dataOr(u.KeyData, u.KeyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	return &pair, err
}

// dataOr decodes data, or reads the file where there is none.
func dataOr(data, file string) ([]byte, error) {
	if data != "" {
		return base64.StdEncoding.DecodeString(data)
	}
	return os.ReadFile(file)
}

// Close ends the client's connections, which are no longer in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Name returns the name of this node.
func (c *Client) Name() string { return c.name }

// Server returns the addresses of the API server.
func (c *Client) Server(ctx context.Context) ([]netip.AddrPort, error) {
	port := c.server.Port()
	if port == "" {
		port = "443"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", c.server.Hostname())
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range found {
		ap, err := netip.ParseAddrPort(net.JoinHostPort(a.Unmap().String(), port))
		if err != nil {
			return nil, err
		}
		out = append(out, ap)
	}
	return out, nil
}

// Annotate sets annotations of this node. Idempotent. ErrForbidden.
func (c *Client) Annotate(ctx context.Context, annotations map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	answer, err := c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(c.name), nil, body)
	if err != nil {
		return fmt.Errorf("annotate the node %s: %w", c.name, err)
	}
	return answer.Close()
}

// do sends a request and returns the body of its answer. ErrForbidden.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body []byte) (io.ReadCloser, error) {
	u := *c.server
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+path, query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var status struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, maxMessage)).Decode(&status) // the code says it, too
	if resp.StatusCode == http.StatusForbidden {
		return nil, fmt.Errorf("%w: %s", ErrForbidden, status.Message)
	}
	return nil, fmt.Errorf("the API server answers %s: %s", resp.Status, status.Message)
}
