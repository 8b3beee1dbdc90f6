package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/subpod/subpod/netns"
)

// ipam gives out addresses. A claim is a symbolic link named after the address
// that "points" to the pod's ID: symlink(2) makes name and content in one step
// and fails when the name is taken, so no crash and no second process can lead
// to an address in two hands. The maps only mirror the directory.
type ipam struct {
	dir string

	mu    sync.Mutex
	owner map[netip.Addr]string
	byPod map[string][]netip.Addr // IPv4 first
	last  uint64                  // host part of the address given out last
}

// maxHosts bounds the addresses that are tried in one subnet.
const maxHosts = 1 << 20

func openIPAM(dir string) (*ipam, error) {
	m := &ipam{dir: dir, owner: map[netip.Addr]string{}, byPod: map[string][]netip.Addr{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open address claims: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read address claims: %w", err)
	}
	for _, e := range entries {
		a, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // not a claim
		}
		pod, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read address claims: %w", err)
		}
		m.note(a, pod)
		m.last = max(m.last, uint64(binary.BigEndian.Uint16(a.AsSlice()[a.BitLen()/8-2:])))
	}
	return m, nil
}

func (m *ipam) note(a netip.Addr, pod string) {
	m.owner[a] = pod
	m.byPod[pod] = append(m.byPod[pod], a)
	slices.SortFunc(m.byPod[pod], netip.Addr.Compare)
}

// claim returns the pod's addresses, one in each subnet and with the same host
// part where it can. Idempotent: a pod keeps what it has. Addresses that have
// been freed are used again as late as possible. ErrNoAddress.
func (m *ipam) claim(pod string, subnets []netip.Prefix) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if have := m.byPod[pod]; len(have) > 0 {
		if len(have) >= len(subnets) {
			return slices.Clone(have), nil
		}
		// Interrupted between two families.
		if err := m.free(pod); err != nil {
			return nil, err
		}
	}
	hosts := uint64(maxHosts)
	for _, s := range subnets {
		hosts = min(hosts, hostCount(s))
	}
	for range hosts {
		// The host parts 0 and 1 are the network and the gateway.
		m.last++
		if m.last < 2 || m.last >= hosts {
			m.last = 2
		}
		ok, err := m.take(pod, subnets, m.last)
		if err != nil {
			return nil, err
		}
		if ok {
			return slices.Clone(m.byPod[pod]), nil
		}
	}
	return nil, fmt.Errorf("%w: %v", netns.ErrNoAddress, subnets)
}

// mac returns the pod's hardware address; nil for a pod without an address.
func (m *ipam) mac(pod string) net.HardwareAddr {
	addrs := m.of(pod)
	if len(addrs) == 0 {
		return nil
	}
	return macOf(addrs[0])
}

// take claims the addresses with this host part in all subnets, or none.
func (m *ipam) take(pod string, subnets []netip.Prefix, host uint64) (bool, error) {
	for _, s := range subnets {
		if m.owner[addrAt(s, host)] != "" {
			return false, nil
		}
	}
	for _, s := range subnets {
		a := addrAt(s, host)
		err := os.Symlink(pod, filepath.Join(m.dir, a.String()))
		if errors.Is(err, fs.ErrExist) {
			return false, m.free(pod)
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("claim address %s: %w", a, err), m.free(pod))
		}
		m.note(a, pod)
	}
	return true, nil
}

// adopt claims addresses that the pod is known to use already.
func (m *ipam) adopt(pod string, addrs []netip.Addr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addrs {
		if o := m.owner[a]; o == pod {
			continue
		} else if o != "" {
			return fmt.Errorf("address %s is claimed by pod %s", a, o)
		}
		if err := os.Symlink(pod, filepath.Join(m.dir, a.String())); err != nil {
			return fmt.Errorf("claim address %s: %w", a, err)
		}
		m.note(a, pod)
	}
	return nil
}

// of returns the pod's addresses, IPv4 first.
func (m *ipam) of(pod string) []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.byPod[pod])
}

// used returns how many pods have addresses.
func (m *ipam) used() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.byPod)
}

// release frees the pod's addresses. Idempotent.
func (m *ipam) release(pod string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free(pod)
}

// releaseAllBut frees the addresses of every pod that is not in live.
func (m *ipam) releaseAllBut(live map[string]bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for pod := range m.byPod {
		if !live[pod] {
			errs = append(errs, m.free(pod))
		}
	}
	return errors.Join(errs...)
}

func (m *ipam) free(pod string) error {
	var left []netip.Addr
	var errs []error
	for _, a := range m.byPod[pod] {
		err := os.Remove(filepath.Join(m.dir, a.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			left = append(left, a)
			errs = append(errs, fmt.Errorf("free address %s: %w", a, err))
			continue
		}
		delete(m.owner, a)
	}
	if m.byPod[pod] = left; len(left) == 0 {
		delete(m.byPod, pod)
	}
	return errors.Join(errs...)
}

// hostCount returns how many host parts below the last (IPv4: the broadcast
// address) the subnet has, at most maxHosts.
func hostCount(s netip.Prefix) uint64 {
	bits := s.Addr().BitLen() - s.Bits()
	if bits >= 20 {
		return maxHosts
	}
	return 1<<bits - 1
}

// addrAt returns the address with the given host part.
func addrAt(s netip.Prefix, host uint64) netip.Addr {
	b := s.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && host > 0; i-- {
		host += uint64(b[i])
		b[i] = byte(host)
		host >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// gatewayOf returns the node's address in the subnet: the first one.
func gatewayOf(s netip.Prefix) netip.Addr { return addrAt(s, 1) }
