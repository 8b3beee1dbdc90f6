package fetch

import "context"

// Distrust leaves out a mirror that has sent blobs, since what came does not have its digest
// or can't be unpacked, and forgets what does not have its digest. It returns false where no
// other endpoint is left to be asked instead. A pull may then be tried again.
func (p *Proxy) Distrust(ctx context.Context) bool {
	for _, e := range p.endpoints {
		if e.last || e.distrusted.Load() || !e.delivered.Load() {
			continue
		}
		e.distrusted.Store(true)
		p.cfg.Log.Warn("a mirror sends what is corrupt, another registry is asked", "mirror", e.Host, "repository", e.Repo)
		forgetWrong(ctx, p)
		p.setErr(nil)
		return true
	}
	return false
}

// forgetWrong releases the blobs of a pull that are not what their digests say.
func forgetWrong(ctx context.Context, p *Proxy) {
	p.aside.clear(false)
	p.mu.Lock()
	used := p.blobs
	p.blobs = map[string]*blob{}
	p.lost = nil
	p.mu.Unlock()
	for _, b := range used {
		if b.complete() && b.verify(ctx) {
			p.use(b)
			continue
		}
		p.cfg.Spool.discard(b)
		p.cfg.Spool.release(b, false)
	}
}
