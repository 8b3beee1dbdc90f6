package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResolvConf(t *testing.T) {
	host := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(host, []byte("# made by hand\nnameserver 127.0.0.53\nsearch  corp.example lan\noptions edns0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	uplink := filepath.Join(t.TempDir(), "uplink")
	if err := os.WriteFile(uplink, []byte("nameserver 10.0.2.3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dns  DNS
		cfg  *runtimeapi.DNSConfig
		want string
	}{
		"of the pod":          {DNS{UplinkFile: uplink, HostFile: host}, &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}, "search a.b c\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5\n"},
		"through the uplink":  {DNS{UplinkFile: uplink, HostFile: host}, nil, "nameserver 10.0.2.3\nsearch corp.example lan\noptions edns0\n"},
		"the host's own":      {DNS{HostFile: host}, &runtimeapi.DNSConfig{}, "# made by hand\nnameserver 127.0.0.53\nsearch  corp.example lan\noptions edns0\n"},
		"no file on the host": {DNS{UplinkFile: uplink, HostFile: host + ".none"}, nil, "nameserver 10.0.2.3\n"},
	} {
		got, err := parseDNS(tc.cfg)
		if err == nil && got == nil {
			got, err = tc.dns.resolvConf()
		}
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
	}
	if _, err := parseDNS(&runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a server with a line break: %v, want ErrInvalidArgument", err)
	}
}
