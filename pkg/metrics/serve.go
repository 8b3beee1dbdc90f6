package metrics

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

const (
	// Path is where metrics are served.
	Path = "/metrics"
	// scrapeTimeout bounds an answer, and idleTimeout a connection without a request.
	scrapeTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// maxScrapes are answered at a time, others refused.
	maxScrapes = 2
	// maxConnections are open at a time, others wait in the kernel: on a loopback address
	// every user of the machine may connect.
	maxConnections = 32
)

// Handler returns what answers a request for Path.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError, // a series that is wrong costs itself
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	})
}

// Serve serves until ctx ends. It closes l.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, errorLog *log.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, m.Handler())
	server := &http.Server{
		Handler: mux, ErrorLog: errorLog,
		ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
