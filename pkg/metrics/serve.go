package metrics

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"
)

const (
	// Path is where metrics are served.
	Path = "/metrics"
	// scrapeTimeout bounds a request, and an answer.
	scrapeTimeout = 10 * time.Second
	// maxScrapes are answered at a time, others refused.
	maxScrapes = 2
	// maxConnections are open at a time, others wait in the kernel: on a loopback address
	// every user of the machine may connect.
	maxConnections = 32
	// maxRate is how many connections a second are accepted for long, others wait as well.
	maxRate = 100
	// lookShare is the part of the time that looking takes, at most: one in so many.
	// Requests in between are given what the last one saw.
	lookShare = 50
)

// Handler returns what answers a request for Path.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(prometheus.GathererFunc(shared(m.registry.Gather)), promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError, // a series that is wrong costs itself
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
		DisableCompression:  true, // it leaves no machine
	})
}

// Serve serves until ctx ends. It closes l. A connection has one request: one that stays
// open would take the place of others.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, errorLog *log.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, m.Handler())
	server := &http.Server{
		Handler: mux, ErrorLog: errorLog,
		ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout,
		MaxHeaderBytes: 16 << 10,
	}
	server.SetKeepAlivesEnabled(false)
	if l.Addr().Network() != "unix" {
		server.Handler = byAddress(mux)
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(paced{netutil.LimitListener(l, maxConnections), ctx, rate.NewLimiter(maxRate, maxConnections)}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// paced is a listener that accepts no more connections than its rate allows.
type paced struct {
	net.Listener
	ctx  context.Context
	rate *rate.Limiter
}

// Accept implements net.Listener.
func (p paced) Accept() (net.Conn, error) {
	_ = p.rate.Wait(p.ctx) // when it ends the listener is closed
	return p.Listener.Accept()
}

// byAddress refuses requests that name another host than an address or localhost. A web
// page in a browser of this machine may make its own name one of a loopback address (DNS
// rebinding): to the browser the answer is the page's then.
func byAddress(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !strings.EqualFold(host, "localhost") {
			http.Error(w, "ask by the address, or as localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// shared returns gather, called no more often than lookShare allows: who asks meanwhile
// gets what was found before. It is called by one at a time.
func shared[T any](gather func() ([]T, error)) func() ([]T, error) {
	var mu sync.Mutex
	var last []T
	var failed error
	var next time.Time
	return func() ([]T, error) {
		mu.Lock()
		defer mu.Unlock()
		begin := time.Now()
		if begin.Before(next) {
			return last, failed
		}
		last, failed = gather()
		end := time.Now()
		next = end.Add((lookShare - 1) * end.Sub(begin))
		return last, failed
	}
}
