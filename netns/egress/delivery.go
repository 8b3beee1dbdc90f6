package egress

import (
	"sync"

	"golang.org/x/sys/unix"
)

// maxDeliveries bounds the sockets of one listener whose caller may not know of them.
const maxDeliveries = 2 * maxCalls

// deliveries are sockets whose callers have them, or are about to, and may not have been told. When
// a signal comes between the two, the kernel begins the call again, with the new socket.
type deliveries struct {
	mu  sync.Mutex
	all map[uint64]*delivery // by the socket's cookie
}

type delivery struct {
	done chan struct{}
	lost bool // after done: the caller was not told
}

// begin is called before a caller gets a socket, and the function that it returns when the caller has been
// told, or could not be.
func (d *deliveries) begin(fd int) (told func(bool)) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return func(bool) {}
	}
	one := &delivery{done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[uint64]*delivery{}
	}
	for old, other := range d.all {
		if len(d.all) < maxDeliveries {
			break
		}
		if other.lost { // its caller has never come back
			delete(d.all, old)
		}
	}
	d.all[cookie] = one
	return func(ok bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		one.lost = !ok
		if ok {
			delete(d.all, cookie)
		}
		close(one.done)
	}
}

// lost reports, once, whether the caller that has a socket was not told so.
func (d *deliveries) lost(cookie uint64) bool {
	d.mu.Lock()
	one := d.all[cookie]
	d.mu.Unlock()
	if one == nil {
		return false
	}
	<-one.done // two system calls away
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[cookie] == one {
		delete(d.all, cookie)
	}
	return one.lost
}
