package bridge

import (
	"slices"

	"github.com/google/nftables"
)

// maxElements of a set are in one message: the length of their list has 16 bits.
// maxPerTransaction elements of maps are in one transaction, which is sent as a whole: no
// more than 200 KiB may wait in a socket where the machine's administrator has not said
// otherwise (net.core.wmem_default).
const (
	maxElements       = 400
	maxPerTransaction = 1500
)

// change adds elements to a set or removes them, as a part of a transaction.
type change func(*nftables.Set, []nftables.SetElement) error

// inParts returns f for any number of elements.
func inParts(f change) change {
	return func(s *nftables.Set, elements []nftables.SetElement) error {
		for part := range slices.Chunk(elements, maxElements) {
			if err := f(s, part); err != nil {
				return err
			}
		}
		return nil
	}
}

// collected are elements of sets, for a transaction with few messages whatever the number
// of pods: the kernel answers each message, and the answers of a transaction have to fit
// into the socket.
type collected struct {
	sets     []*nftables.Set
	elements map[string][]nftables.SetElement // by the name of the set
}

// add collects elements.
func (c *collected) add(s *nftables.Set, elements []nftables.SetElement) error {
	if c.elements == nil {
		c.elements = map[string][]nftables.SetElement{}
	}
	if _, known := c.elements[s.Name]; !known {
		c.sets = append(c.sets, s)
	}
	c.elements[s.Name] = append(c.elements[s.Name], elements...)
	return nil
}

// send calls f with all elements of each set.
func (c *collected) send(f change) error {
	for _, s := range c.sets {
		if err := inParts(f)(s, c.elements[s.Name]); err != nil {
			return err
		}
	}
	return nil
}
