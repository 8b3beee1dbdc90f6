package pod

import "sync"

// holds counts, by pod, who restarts containers of it: meanwhile it is not removed for
// having none that runs.
type holds struct {
	mu sync.Mutex
	m  map[string]int
}

func (h *holds) has(podID string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.m[podID] > 0
}

// add holds the pod; the result ends that and must be called once.
func (h *holds) add(podID string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.m[podID]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.m[podID]--; h.m[podID] == 0 {
			delete(h.m, podID)
		}
	}
}
