package fetch

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Signatures may lie on a server that is no registry. The library asks it itself, and
// verifies its certificate; only the way there leads through the proxy, since the process
// of the library can connect nowhere else. Servers that the configuration does not name
// are refused.

// maxElsewhere bounds the bytes of one connection, in each direction.
const maxElsewhere = 64 << 20

// serveElsewhere answers a request for one of Config.Elsewhere: a tunnel, or a GET in
// plain HTTP.
func serveElsewhere(p *Proxy, w http.ResponseWriter, r *http.Request) {
	host := HostPort(r.URL)
	if !slices.Contains(p.cfg.Elsewhere, host) {
		p.fail(w, &Error{What: "signatures or layers", Host: host,
			Err: fmt.Errorf("%w: %w: no registries.d names this server", ErrNotRegistry, errRefuse)})
		return
	}
	var err error
	if r.Method == http.MethodConnect {
		err = tunnel(p, w, r, host)
	} else {
		err = forward(p, w, r)
	}
	if err != nil {
		p.fail(w, &Error{What: "signatures", Host: host, Err: unavailable(err)})
	}
}

// HostPort returns the host and port of a URL; a request to open a tunnel has no scheme.
func HostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// forward answers a GET in plain HTTP.
func forward(p *Proxy, w http.ResponseWriter, r *http.Request) error {
	e := p.endpoints[len(p.endpoints)-1] // the most patient one
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.String(), nil)
	if err != nil {
		return err
	}
	client := *e.fresh
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // the library asks
	resp, err := e.send(&client, e.dressed(req))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for _, name := range []string{"Content-Type", "Location"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(resp.Body, maxElsewhere))
	return nil
}

// tunnel connects the library with host.
func tunnel(p *Proxy, w http.ResponseWriter, r *http.Request, host string) error {
	e := p.endpoints[len(p.endpoints)-1]
	ctx, cancel := context.WithTimeout(r.Context(), e.patience())
	defer cancel()
	far, err := dialThrough(ctx, host)
	if err != nil {
		return err
	}
	defer far.Close()
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer near.Close()
	stop := context.AfterFunc(p.ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return nil // the library has gone
	}
	var both sync.WaitGroup
	for _, way := range []struct {
		to, from net.Conn
		in       io.Reader
	}{{far, near, buffered}, {near, far, far}} {
		both.Go(func() {
			defer way.to.Close()
			carry(way.to, way.from, way.in, e.patience())
		})
	}
	both.Wait()
	return nil
}

// carry copies what comes from a connection, until nothing comes for so long.
func carry(to io.Writer, from net.Conn, in io.Reader, patience time.Duration) {
	buf := make([]byte, 16<<10)
	for left := int64(maxElsewhere); left > 0; {
		_ = from.SetReadDeadline(time.Now().Add(patience))
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			left -= int64(n)
		}
		if err != nil {
			return
		}
	}
}

// dialThrough connects to host, through the proxy of the environment where there is one.
func dialThrough(ctx context.Context, host string) (net.Conn, error) {
	via, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: host}})
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	if via == nil {
		return dialer.DialContext(ctx, "tcp", host)
	}
	var c net.Conn
	switch via.Scheme {
	case "http":
		c, err = dialer.DialContext(ctx, "tcp", HostPort(via))
	case "https":
		c, err = (&tls.Dialer{}).DialContext(ctx, "tcp", HostPort(via))
	default:
		return nil, fmt.Errorf("a proxy of type %q is not supported for servers of signatures", via.Scheme)
	}
	if err != nil {
		return nil, err
	}
	if err := askThrough(ctx, c, via, host); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// askThrough has a proxy connect c with host.
func askThrough(ctx context.Context, c net.Conn, via *url.URL, host string) error {
	if until, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(until)
		defer c.SetDeadline(time.Time{})
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: host}, Host: host, Header: http.Header{}}
	if via.User != nil {
		password, _ := via.User.Password()
		login := http.Request{Header: http.Header{}}
		login.SetBasicAuth(via.User.Username(), password)
		req.Header.Set("Proxy-Authorization", login.Header.Get("Authorization"))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(c, 64<<10))
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy %s answers %s", via.Host, statusOf(resp))
	}
	if in.Buffered() > 0 {
		return errors.New("the proxy sends something before the server was asked")
	}
	return nil
}
