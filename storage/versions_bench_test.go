package storage

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/pkg/compression"
	"golang.org/x/sys/unix"
)

// servedBytes is a registry behind a proxy that counts what it sends.
func servedBytes(t testing.TB, r *registry) (host string, sent *atomic.Int64) {
	t.Helper()
	target, err := url.Parse(r.url)
	if err != nil {
		t.Fatal(err)
	}
	sent = &atomic.Int64{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(resp *http.Response) error {
		resp.Body = countedBody{resp.Body, sent}
		return nil
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	return strings.TrimPrefix(front.URL, "http://"), sent
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// contentTime is the processor time of all content processes, and of their own children,
// that have ended.
func contentTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// versionLayer is a layer of files files of up to 64 KiB, 21 on average, of which one in
// every is another one in each version; 0 for none.
func versionLayer(name string, files, every, version int) layer {
	l := layer{name: {typeflag: tar.TypeDir, mode: 0o755}} // without directories no layer is pulled in part
	for f := range files {
		l[fmt.Sprintf("%s/d%d", name, f/100)] = entry{typeflag: tar.TypeDir, mode: 0o755}
		seed := fmt.Sprint(name, f)
		if every > 0 && f%every == 0 {
			seed += fmt.Sprint(" of version ", version)
		}
		var b strings.Builder
		for i := 0; b.Len() < 1<<(6+f%11); i++ {
			b.WriteString(digest.FromString(fmt.Sprint(seed, i)).Encoded())
		}
		l[fmt.Sprintf("%s/d%d/f%d", name, f/100, f)] = entry{content: b.String()}
	}
	return l
}

// BenchmarkVersions pulls two versions of an image, one after the other, in each format of
// its layers, and prints what was fetched, how long
// it took, and the content process's processor time. Their lowest layer is the
// same; of the files of the next one a tenth is new, as of an update of a distribution, and
// all of those of a small third one, the program, are.
//
//	go test -run '^$' -bench Versions -benchtime 3x ./storage
func BenchmarkVersions(b *testing.B) {
	version := func(n int) built {
		return build(b, imageSpec{layers: []layer{versionLayer("base", 1500, 0, n), versionLayer("packages", 3000, 10, n), versionLayer("program", 50, 1, n)}})
	}
	one, two := version(1), version(2)
	for _, format := range []struct {
		name string
		algo compression.Algorithm
	}{{"gzip", compression.Gzip}, {"zstd", compression.Zstd}, {"zstd:chunked", compression.ZstdChunked}} {
		b.Run(format.name, func(b *testing.B) {
			r := startRegistry(b, false)
			host, sent := servedBytes(b, r)
			home := testOptions(b, benchDir(b), DriverFuse)
			insecureConf(b, home, host)
			openStore(b, home) // first: it tells the libraries where home is
			pushAs(b, r.host, "app:one", one, format.algo)
			pushAs(b, r.host, "app:two", two, format.algo)
			var took, cpu [2][]time.Duration
			var bytes [2]int64
			for b.Loop() {
				o := testOptions(b, benchDir(b), DriverFuse)
				insecureConf(b, o, host)
				s := openStore(b, o)
				for i, tag := range []string{"one", "two"} {
					sent.Store(0)
					before, began := contentTime(b), time.Now()
					if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: host + "/app:" + tag}); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], time.Since(began))
					cpu[i] = append(cpu[i], contentTime(b)-before)
					bytes[i] = sent.Load()
				}
				closeStore(b, s)
			}
			for i, name := range []string{"first", "second"} {
				b.ReportMetric(float64(bytes[i])/1e6, "MB-"+name)
				b.ReportMetric(median(took[i]), "ms-"+name)
				b.ReportMetric(median(cpu[i]), "ms-CPU-"+name)
			}
		})
	}
}
