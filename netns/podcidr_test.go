package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckSubnets(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string // "" = refused
	}{
		{nil, "[]"},
		{[]string{"fd00:1::5/64", "10.1.2.3/16"}, "[10.1.0.0/16 fd00:1::/64]"},
		{[]string{"10.0.0.0/30"}, "[10.0.0.0/30]"},
		{[]string{"10.0.0.0/31"}, ""},
		{[]string{"10.0.0.0/16", "10.1.0.0/16"}, ""},
		{[]string{"fd00:1::/64", "fd00:2::/64"}, ""},
		{[]string{"::ffff:10.0.0.0/104"}, ""},
		{[]string{"0.0.0.0/0"}, ""},
		{[]string{"10.0.0.0/0"}, ""},
		{[]string{"::1/64"}, ""},
		{[]string{"127.1.0.0/16"}, ""},
		{[]string{"224.0.0.0/8"}, ""},
		{[]string{"ff02::/64"}, ""},
	} {
		var in []netip.Prefix
		for _, s := range c.in {
			in = append(in, netip.MustParsePrefix(s))
		}
		got, err := CheckSubnets(in)
		if c.want == "" {
			if !errors.Is(err, ErrBadSubnet) || !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%v: %v, %v; want ErrBadSubnet", c.in, got, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%v: %v, %v; want %s", c.in, got, err, c.want)
		}
	}
	if _, err := CheckSubnets([]netip.Prefix{{}}); !errors.Is(err, ErrBadSubnet) {
		t.Errorf("the zero prefix: %v", err)
	}
}
