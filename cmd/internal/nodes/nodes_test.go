package nodes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	keyA = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
	keyB = "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA="
)

// node is one of a cluster; key "" has no tunnel.
func node(name, cidr, address, key string, age time.Duration) (n Node) {
	n.Metadata.Name = name
	n.Metadata.CreationTimestamp = time.Unix(1e9, 0).Add(-age)
	if key != "" {
		n.Metadata.Annotations = map[string]string{AnnotationKey: key, AnnotationPort: "51820"}
	}
	if cidr != "" {
		n.Spec.PodCIDRs = strings.Split(cidr, ",")
	}
	_ = json.Unmarshal(fmt.Appendf(nil, `[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}]`, name, address), &n.Status.Addresses)
	return n
}

// at returns the node with one more address.
func (n Node) at(address string) Node {
	more := node("", "", address, "", 0).Status.Addresses
	n.Status.Addresses = append(slices.Clone(n.Status.Addresses), more[1:]...)
	return n
}

func TestPlan(t *testing.T) {
	self := node("self", "10.244.0.0/24,fd44::/64", "192.0.2.1", "", time.Hour)
	a := node("a", "10.244.1.0/24", "192.0.2.2", keyA, time.Minute)
	bad := func(change func(*Node)) Node {
		n := node("bad", "10.244.9.0/24", "192.0.2.9", keyB, 0)
		change(&n)
		return n
	}
	uplink := []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("192.0.2.0/24")}
	for _, test := range []struct {
		what    string
		others  []Node
		peers   []string
		problem string
	}{
		{"one", []Node{a}, []string{"a 192.0.2.2:51820 [10.244.1.0/24] [192.0.2.2]"}, ""},
		{"one without a tunnel", []Node{node("c", "10.244.2.0/24", "192.0.2.3", "", 0)}, nil, ""},
		{"no key", []Node{bad(func(n *Node) { n.Metadata.Annotations[AnnotationKey] = "x" })}, nil, "no tunnel to the node bad: not a WireGuard key"},
		{"no port", []Node{bad(func(n *Node) { n.Metadata.Annotations[AnnotationPort] = "0" })}, nil, `no tunnel to the node bad: "0" is no port`},
		{"no address", []Node{bad(func(n *Node) { n.Status.Addresses = nil })}, nil, "no tunnel to the node bad: it has no InternalIP"},
		{"no pods yet", []Node{bad(func(n *Node) { n.Spec.PodCIDRs = nil })}, []string{"bad 192.0.2.9:51820 [] [192.0.2.9]"}, ""},
		{"another's key", []Node{a, bad(func(n *Node) { n.Metadata.Annotations[AnnotationKey] = keyA })}, []string{"a 192.0.2.2:51820 [10.244.1.0/24] [192.0.2.2]"},
			"no tunnel to the node bad: it has the key of another"},
		{"this node's address", []Node{node("thief", "10.244.9.0/24", "192.0.2.1", keyB, 0)}, []string{"thief 192.0.2.1:51820 [10.244.9.0/24] []"},
			"the node thief claims 192.0.2.1/32, of which 192.0.2.1/32 is another's already"},
		{"another's pods", []Node{a, node("thief", "10.244.1.128/25", "192.0.2.8", keyB, 0)},
			[]string{"a 192.0.2.2:51820 [10.244.1.0/24] [192.0.2.2]", "thief 192.0.2.8:51820 [] [192.0.2.8]"},
			"the node thief claims 10.244.1.128/25, of which 10.244.1.0/24 is another's already"},
		{"a part of the internet", []Node{node("thief", "200.0.0.0/8", "10.0.0.8", keyB, 0)}, []string{"thief 10.0.0.8:51820 [] [10.0.0.8]"},
			"the node thief claims 200.0.0.0/8, which is no subnet such as 10.244.0.0/24, this node's"},
		{"all of IPv6", []Node{node("thief", "::/0", "192.0.2.8", keyB, 0)}, []string{"thief 192.0.2.8:51820 [] [192.0.2.8]"},
			"the node thief claims ::/0, which is no subnet such as fd44::/64, this node's"},
		{"loopback", []Node{node("thief", "127.0.0.0/24", "192.0.2.8", keyB, 0)}, []string{"thief 192.0.2.8:51820 [] [192.0.2.8]"},
			"the node thief claims 127.0.0.0/24, which is no subnet such as 10.244.0.0/24, this node's"},
		{"the uplink's name server", []Node{node("thief", "10.244.9.0/24", "10.0.2.3", keyB, 0)}, []string{"thief 10.0.2.3:51820 [10.244.9.0/24] []"},
			"the node thief claims 10.0.2.3/32, of which 10.0.2.0/24 is another's already"},
		{"more addresses", []Node{node("thief", "10.244.9.0/24", "192.0.2.8", keyB, 0).at("198.51.100.1").at("2001:db8::8").at("2001:db8::9")},
			[]string{"thief 192.0.2.8:51820 [10.244.9.0/24] [192.0.2.8 2001:db8::8]"}, ""},
		{"an address with a zone", []Node{node("thief", "10.244.9.0/24", "2001:db8::1%x\nallowed_ip=0.0.0.0/0", keyB, 0)}, nil, "no tunnel to the node thief: it has no InternalIP"},
	} {
		c, problems, err := Plan("self", append([]Node{self}, test.others...), uplink)
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		if want := []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd44::1")}; !slices.Equal(c.Sources, want) {
			t.Errorf("%s: sources %v, want %v", test.what, c.Sources, want)
		}
		if got, want := fmt.Sprint(c.Own), "[10.244.0.0/24 fd44::/64 192.0.2.1/32]"; got != want {
			t.Errorf("%s: its own are %s, want %s", test.what, got, want)
		}
		var peers []string
		for _, p := range c.Peers {
			peers = append(peers, fmt.Sprint(p.Name, " ", p.Endpoint, " ", p.Pods, " ", p.Addresses))
		}
		if !slices.Equal(peers, test.peers) {
			t.Errorf("%s: peers %q, want %q", test.what, peers, test.peers)
		}
		if test.problem == "" && len(problems) > 0 || test.problem != "" && (len(problems) != 1 || !strings.HasPrefix(problems[0], test.problem)) {
			t.Errorf("%s: problems %q, want %q", test.what, problems, test.problem)
		}
	}
	for what, all := range map[string][]Node{"no node": {a}, "no subnet": {node("self", "", "192.0.2.1", "", 0)}} {
		if _, _, err := Plan("self", all, nil); !errors.Is(err, ErrNotYet) {
			t.Errorf("%s: %v, want %v", what, err, ErrNotYet)
		}
	}
}

// apiServer is one with a list of nodes, and events for one watch.
type apiServer struct {
	*httptest.Server
	nodes     []Node
	events    []string
	forbidden bool
	patch     string        // the last one
	closed    chan struct{} // one for each connection that has ended
}

func newServer(t *testing.T) *apiServer {
	s := &apiServer{closed: make(chan struct{}, 100)}
	s.Server = httptest.NewUnstartedServer(s)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			s.closed <- struct{}{}
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.forbidden:
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"message": "nodes is forbidden"}`)
	case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/me":
		body, _ := io.ReadAll(r.Body)
		s.patch = r.Header.Get("Content-Type") + " " + string(body)
	case r.URL.Query().Has("watch") && r.URL.Query().Get("resourceVersion") == "7":
		for _, e := range s.events {
			_, _ = io.WriteString(w, e+"\n")
		}
	case r.URL.Path == "/api/v1/nodes":
		_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]string{"resourceVersion": "7"}, "items": s.nodes})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// kubeconfig writes one for a client of that name.
func (s *apiServer) kubeconfig(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	dir := t.TempDir()
	file := filepath.Join(dir, "current.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	config := fmt.Sprintf("clusters:\n- name: x\n  cluster: {server: %q, certificate-authority-data: %s}\nusers:\n- name: x\n  user: {client-certificate: %s, client-key: %s}\n",
		s.URL, base64.StdEncoding.EncodeToString(ca), file, file)
	for path, text := range map[string]string{file: string(both), filepath.Join(dir, "kubelet.conf"): config} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "kubelet.conf")
}

func TestFollow(t *testing.T) {
	s := newServer(t)
	s.nodes = []Node{node("b", "10.244.1.0/24", "192.0.2.2", "", time.Minute), node("a", "10.244.0.0/24", "192.0.2.1", "", time.Hour)}
	third, err := json.Marshal(node("c", "", "192.0.2.3", "", 0))
	if err != nil {
		t.Fatal(err)
	}
	s.events = []string{
		`{"type":"ADDED","object":` + string(third) + `}`, `{"type":"BOOKMARK","object":{}}`, `{"type":"DELETED","object":{"metadata":{"name":"b"}}}`,
		`{"type":"ERROR","object":{"code":410}}`, `{"type":"ADDED","object":` + string(third) + `}`,
	}
	c, err := Open(s.kubeconfig(t, "system:node:me"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != "me" {
		t.Errorf("the node is %q", c.Name())
	}
	var seen []string
	err = c.Follow(t.Context(), func(all []Node) error {
		names := ""
		for _, n := range all {
			names += n.Metadata.Name
		}
		seen = append(seen, names)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "410") {
		t.Errorf("the end of the watch: %v, want 410", err)
	}
	if want := []string{"ab", "abc", "ac"}; !slices.Equal(seen, want) {
		t.Errorf("nodes %q, want %q", seen, want)
	}
	s.events = nil
	if err := c.Follow(t.Context(), func([]Node) error { return nil }); err != nil {
		t.Errorf("a watch that ends: %v", err)
	}
	own := errors.New("own")
	if err := c.Follow(t.Context(), func([]Node) error { return own }); !errors.Is(err, own) {
		t.Errorf("%v, want %v", err, own)
	}
	s.forbidden = true
	if err := c.Follow(t.Context(), nil); !errors.Is(err, ErrForbidden) {
		t.Errorf("%v, want %v", err, ErrForbidden)
	}
}

// A client that is closed leaves no connection: a tunnel opens one after the other.
func TestClose(t *testing.T) {
	s := newServer(t)
	c, err := Open(s.kubeconfig(t, "system:node:me"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Follow(t.Context(), func([]Node) error { return nil }); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-s.closed:
	case <-time.After(time.Minute): // only ends a test that would wait forever
		t.Fatal("the connection is left")
	}
}

func TestAnnotate(t *testing.T) {
	s := newServer(t)
	c, err := Open(s.kubeconfig(t, "system:node:me"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Annotate(t.Context(), map[string]string{AnnotationPort: "1"}); err != nil {
		t.Fatal(err)
	}
	if want := `application/merge-patch+json {"metadata":{"annotations":{"subpod.io/tunnel-port":"1"}}}`; s.patch != want {
		t.Errorf("patched %s, want %s", s.patch, want)
	}
	addresses, err := c.Server(context.Background())
	if want := netip.MustParseAddrPort(s.Listener.Addr().String()); err != nil || !slices.Equal(addresses, []netip.AddrPort{want}) {
		t.Errorf("the server is %v, %v, want %v", addresses, err, want)
	}
	nodes := []Node{node("me", "", "192.0.2.1", keyA, 0)}
	if !Announced("me", nodes, map[string]string{AnnotationKey: keyA}) || Announced("me", nodes, map[string]string{AnnotationKey: keyB}) {
		t.Error("Announced is wrong")
	}
}

func TestOpenBad(t *testing.T) {
	s := newServer(t)
	if _, err := Open(s.kubeconfig(t, "kubernetes-admin")); err == nil || !strings.Contains(err.Error(), "not of a node") {
		t.Errorf("an administrator's: %v", err)
	}
	for _, bad := range []string{"", "{", "clusters: []", "clusters: [{cluster: {server: 'http://x'}}]\nusers: [{}]"} {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
