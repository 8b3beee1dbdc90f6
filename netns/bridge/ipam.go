package bridge

import (
	"bytes"
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
	byPod map[string][]netip.Addr     // IPv4 first
	macs  map[string]net.HardwareAddr // of the pods that have chosen theirs
	last  uint64                      // host part of the address given out last
	// first and end bound the host parts that are given out to pods that choose none; 0
	// is no bound.
	first, end uint64
}

// maxHosts bounds the addresses that are tried in one subnet.
const maxHosts = 1 << 20

func openIPAM(dir string) (*ipam, error) {
	m := &ipam{dir: dir, owner: map[netip.Addr]string{}, byPod: map[string][]netip.Addr{}, macs: map[string]net.HardwareAddr{}}
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

// limit makes pods that choose no address get one of the range, which is a part of one
// of the IPv4 subnets. The zero value is no limit.
func (m *ipam) limit(r netip.Prefix, subnets []netip.Prefix) {
	number := func(a netip.Addr) uint64 { return uint64(binary.BigEndian.Uint32(a.AsSlice())) }
	for _, s := range subnets {
		if r.IsValid() && s.Addr().Is4() && s.Overlaps(r) {
			base := number(s.Masked().Addr())
			m.first, m.end = number(r.Masked().Addr())-base, number(lastOf(r))+1-base
		}
	}
}

func (m *ipam) note(a netip.Addr, pod string) {
	m.owner[a] = pod
	m.byPod[pod] = append(m.byPod[pod], a)
	slices.SortFunc(m.byPod[pod], netip.Addr.Compare)
}

// claim returns the pod's addresses, one in each subnet and with the same host
// part where it can, or those that it wants. Idempotent: a pod keeps what it has.
// Addresses that have been freed are used again as late as possible. ErrNoAddress,
// ErrAddressTaken, ErrBadPod.
func (m *ipam) claim(pod string, subnets []netip.Prefix, wanted ...netip.Addr) ([]netip.Addr, error) {
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
	subnets, err := m.takeWanted(pod, subnets, wanted)
	if err != nil || len(subnets) == 0 {
		return slices.Clone(m.byPod[pod]), err
	}
	// The host parts 0 and 1 are the network and the gateway.
	first, end := max(m.first, 2), uint64(maxHosts)
	if m.end > 0 {
		end = m.end
	}
	for _, s := range subnets {
		end = min(end, hostCount(s))
	}
	for range end {
		m.last++
		if m.last < first || m.last >= end {
			m.last = first
		}
		ok, err := m.take(pod, subnets, m.last)
		if err != nil {
			return nil, err
		}
		if ok {
			return slices.Clone(m.byPod[pod]), nil
		}
	}
	return nil, errors.Join(fmt.Errorf("%w: %v", netns.ErrNoAddress, subnets), m.free(pod))
}

// all returns the addresses by pod.
func (m *ipam) all() map[string][]netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string][]netip.Addr, len(m.byPod))
	for pod, addrs := range m.byPod {
		all[pod] = slices.Clone(addrs)
	}
	return all
}

// taken reports whether a pod has the address.
func (m *ipam) taken(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owner[a] != ""
}

// mac returns the pod's hardware address; nil for a pod without an address.
func (m *ipam) mac(pod string) net.HardwareAddr {
	m.mu.Lock()
	defer m.mu.Unlock()
	addrs := m.byPod[pod]
	if len(addrs) == 0 {
		return nil
	}
	if mac := m.macs[pod]; mac != nil {
		return mac
	}
	return macOf(addrs[0])
}

// setMAC notes the hardware address that a pod with an address has chosen, nil for none.
// ErrAddressTaken, ErrBadPod.
func (m *ipam) setMAC(pod string, mac net.HardwareAddr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mac == nil || len(m.byPod[pod]) == 0 {
		return nil
	}
	derived := macOf(m.byPod[pod][0])
	switch {
	case len(mac) != len(derived) || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, len(mac))):
		return fmt.Errorf("%w: hardware address %s is not one of a single interface", netns.ErrBadPod, mac)
	case bytes.Equal(mac[:2], derived[:2]) && !bytes.Equal(mac, derived):
		return fmt.Errorf("%w: hardware addresses that begin with %s are for pods that choose none", netns.ErrBadPod, mac[:2])
	}
	for other, theirs := range m.macs {
		if other != pod && bytes.Equal(mac, theirs) {
			return fmt.Errorf("%w: %s by pod %s", netns.ErrAddressTaken, mac, other)
		}
	}
	m.macs[pod] = mac
	return nil
}

// takeWanted claims the addresses that a pod wants, and returns the subnets that it
// wants none in. On an error it has claimed nothing.
func (m *ipam) takeWanted(pod string, subnets []netip.Prefix, wanted []netip.Addr) ([]netip.Prefix, error) {
	rest := slices.Clone(subnets)
	for _, a := range wanted {
		i := slices.IndexFunc(rest, func(s netip.Prefix) bool { return s.Contains(a) })
		if i < 0 {
			return nil, errors.Join(fmt.Errorf("%w: address %s is not in %v", netns.ErrBadPod, a, subnets), m.free(pod))
		}
		s := rest[i]
		if a == addrAt(s, 0) || a == gatewayOf(s) || s.Addr().Is4() && a == lastOf(s) {
			return nil, errors.Join(fmt.Errorf("%w: address %s belongs to the network itself", netns.ErrBadPod, a), m.free(pod))
		}
		err := os.Symlink(pod, filepath.Join(m.dir, a.String()))
		if errors.Is(err, fs.ErrExist) {
			return nil, errors.Join(fmt.Errorf("%w: %s by pod %s", netns.ErrAddressTaken, a, m.owner[a]), m.free(pod))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("claim address %s: %w", a, err), m.free(pod))
		}
		m.note(a, pod)
		rest = slices.Delete(rest, i, i+1)
	}
	return rest, nil
}

// take claims the addresses with this host part in all subnets, or none.
func (m *ipam) take(pod string, subnets []netip.Prefix, host uint64) (bool, error) {
	for _, s := range subnets {
		if m.owner[addrAt(s, host)] != "" {
			return false, nil
		}
	}
	var done []netip.Addr
	for _, s := range subnets {
		a := addrAt(s, host)
		err := os.Symlink(pod, filepath.Join(m.dir, a.String()))
		if errors.Is(err, fs.ErrExist) {
			return false, m.drop(pod, done)
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("claim address %s: %w", a, err), m.free(pod))
		}
		m.note(a, pod)
		done = append(done, a)
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

func (m *ipam) free(pod string) error { return m.drop(pod, m.byPod[pod]) }

// drop frees some of the pod's addresses.
func (m *ipam) drop(pod string, some []netip.Addr) error {
	var left []netip.Addr
	var errs []error
	for _, a := range m.byPod[pod] {
		if !slices.Contains(some, a) {
			left = append(left, a)
			continue
		}
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
		delete(m.macs, pod)
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
