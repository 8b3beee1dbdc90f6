package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/subpod/subpod/pkg/stdio"
)

func TestInvalidRequests(t *testing.T) {
	s, err := New(&local{}, Options{BaseURL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]func() (string, error){
		"exec nil":        func() (string, error) { return s.Exec(nil) },
		"exec no id":      func() (string, error) { return s.Exec(&runtimeapi.ExecRequest{Cmd: []string{"x"}, Stdout: true}) },
		"exec no command": func() (string, error) { return s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true}) },
		"exec no stream":  func() (string, error) { return s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}}) },
		"attach nil":      func() (string, error) { return s.Attach(nil) },
		"attach tty+stderr": func() (string, error) {
			return s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Tty: true, Stderr: true})
		},
		"forward nil": func() (string, error) { return s.PortForward(nil) },
		"forward port 0": func() (string, error) {
			return s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 0}})
		},
		"forward port 65536": func() (string, error) {
			return s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{65536}})
		},
	}
	for name, call := range cases {
		if url, err := call(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %q, %v", name, url, err)
		}
	}
	for _, base := range []string{"", "127.0.0.1:80", "ftp://x", "http://x/base", "http://", "http://x:y"} {
		if _, err := New(&local{}, Options{BaseURL: base}); err == nil {
			t.Errorf("base URL %q was taken", base)
		}
	}
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tk := tokens{ttl: time.Minute, waiting: map[string]pending{}}
		request := &runtimeapi.ExecRequest{ContainerId: "c"}
		add := func() string {
			t.Helper()
			token, err := tk.add(kindExec, request)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		token := add()
		if len(token) < 22 {
			t.Errorf("%q has fewer than 128 bits", token)
		}
		if _, ok := tk.take(kindAttach, token); ok {
			t.Error("good for another kind of session")
		}
		if r, ok := tk.take(kindExec, token); !ok || r != request {
			t.Errorf("got %v, %v", r, ok)
		}
		if _, ok := tk.take(kindExec, token); ok {
			t.Error("good twice")
		}
		token = add()
		time.Sleep(time.Minute + time.Nanosecond)
		if _, ok := tk.take(kindExec, token); ok {
			t.Error("good after it expired")
		}
		for range maxWaiting {
			add()
		}
		if token, err := tk.add(kindExec, nil); !errors.Is(err, ErrBusy) {
			t.Errorf("one too many: got %q, %v", token, err)
		}
		time.Sleep(time.Minute + time.Nanosecond)
		add()
		if n := len(tk.waiting); n != 1 {
			t.Errorf("%d wait, of which one has not expired", n)
		}
		// What they hold is bounded, too: this is half of it, with what waits already.
		large := &runtimeapi.ExecRequest{Cmd: []string{strings.Repeat("x", maxWaitingBytes/2)}}
		token, err := tk.add(kindExec, large)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tk.add(kindExec, large); !errors.Is(err, ErrBusy) {
			t.Errorf("%d bytes more than may wait: %v", maxWaitingBytes/2, err)
		}
		if _, ok := tk.take(kindExec, token); !ok {
			t.Error("the large one is lost")
		}
		if _, err := tk.add(kindExec, large); err != nil {
			t.Errorf("there is room again: %v", err)
		}
	})
}

// TestTokensOverHTTP: what a stranger on the loopback gets.
func TestTokensOverHTTP(t *testing.T) {
	s, short := start(t, &local{}, Options{}), start(t, &local{}, Options{TokenTTL: 10 * time.Millisecond})
	get := func(method, url string) int {
		t.Helper()
		req, err := http.NewRequest(method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		t.Logf("%s %s: %d %s", method, url, resp.StatusCode, text)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if code := get(http.MethodGet, strings.Replace(url, "/exec/", "/attach/", 1)); code != http.StatusNotFound {
		t.Errorf("as another kind: %d", code)
	}
	if code := get(http.MethodPut, url); code != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", code)
	}
	if code := get(http.MethodGet, url); code != http.StatusBadRequest {
		t.Errorf("without an upgrade: %d", code)
	}
	if code := get(http.MethodGet, url); code != http.StatusNotFound {
		t.Errorf("second use: %d", code)
	}
	if url, err = short.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if code := get(http.MethodPost, url); code != http.StatusNotFound {
		t.Errorf("expired: %d", code)
	}
	for _, path := range []string{"/", "/exec", "/exec/", "/exec/a/b", "/debug"} {
		if code := get(http.MethodGet, s.base.String()+path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
}

// TestListen uses two loopback addresses where the daemon has two namespaces.
func TestListen(t *testing.T) {
	lo := netip.MustParseAddr("127.0.0.1")
	second := func(network, address string) (net.Listener, error) {
		return net.Listen(network, strings.Replace(address, "127.0.0.1:", "127.0.0.2:", 1))
	}
	ls, err := Listen(lo, 0, net.Listen, second)
	if err != nil {
		t.Fatal(err)
	}
	a, b := ls[0].Addr().(*net.TCPAddr), ls[1].Addr().(*net.TCPAddr)
	if a.Port != b.Port || a.Port == 0 || b.IP.String() != "127.0.0.2" {
		t.Errorf("got %s and %s", a, b)
	}
	_ = ls[0].Close()
	// The second place is taken still: the first must be free again afterwards.
	if _, err := Listen(lo, uint16(a.Port), net.Listen, second); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken port: %v", err)
	}
	_ = ls[1].Close()
	for range 2 { // nothing is left open, so that it works twice
		if ls, err = Listen(lo, uint16(a.Port), net.Listen, second); err != nil {
			t.Fatal(err)
		}
		for _, l := range ls {
			_ = l.Close()
		}
	}
	// A port that is free in one namespace only is not the end of the search.
	tries := 0
	flaky := func(network, address string) (net.Listener, error) {
		if tries++; tries < 3 {
			return nil, errors.New("taken")
		}
		return second(network, address)
	}
	if ls, err = Listen(lo, 0, net.Listen, flaky); err != nil || tries != 3 {
		t.Fatalf("after %d tries: %v", tries, err)
	}
	for _, l := range ls {
		_ = l.Close()
	}
}

// TestServeOnSeveral: one URL is good at each listener.
func TestServeOnSeveral(t *testing.T) {
	second := func(network, address string) (net.Listener, error) {
		return net.Listen(network, strings.Replace(address, "127.0.0.1:", "127.0.0.2:", 1))
	}
	ls, err := Listen(netip.MustParseAddr("127.0.0.1"), 0, net.Listen, second)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(&local{}, Options{BaseURL: "http://" + ls[0].Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ls...) }()
	for _, host := range []string{"127.0.0.1:", "127.0.0.2:"} {
		url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"echo", "hi"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		got := runClient(t, nil, "-stderr=false", "command", strings.Replace(url, "127.0.0.1:", host, 1))
		if got != (result{stdout: "hi\n"}) {
			t.Errorf("%s: %+v", host, got)
		}
	}
	// When one listener fails, Serve ends with its error, and the other closes.
	_ = ls[1].Close()
	if err := <-served; err == nil {
		t.Error("a failed listener gave no error")
	}
	if conn, err := net.Dial("tcp", ls[0].Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the other listener is open")
	}
	_ = s.Close()
}

func TestLatestSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := make(chan remotecommand.TerminalSize), make(chan stdio.TerminalSize)
		go latest(t.Context(), in, out)
		for i := range uint16(100) { // nobody reads, and nobody waits
			in <- remotecommand.TerminalSize{Width: i, Height: 1}
		}
		close(in)
		if size, ok := <-out; !ok || size.Width != 99 {
			t.Errorf("got %v, %v", size, ok)
		}
		if size, ok := <-out; ok {
			t.Errorf("got %v after the end", size)
		}
		ctx, cancel := context.WithCancel(t.Context())
		in, out = make(chan remotecommand.TerminalSize), make(chan stdio.TerminalSize)
		go latest(ctx, in, out)
		in <- remotecommand.TerminalSize{}
		cancel()
		synctest.Wait()
		if _, ok := <-out; ok {
			t.Log("the size was still handed on") // either is right
		}
	})
}

// FuzzReadSizes: no bytes on the resize channel make the reader panic, hang, or
// hold up the connection by leaving bytes unread.
func FuzzReadSizes(f *testing.F) {
	for _, s := range []string{`{"Width":80,"Height":24}`, "{\"Width\":1}\n{\"Height\":2}", "[[[[", `{"Width":-1}`, `{"Width":65536}`, "{}", "\x00",
		`{"Width":1,"X":"` + strings.Repeat("y", 2*maxSize) + `"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := strings.NewReader(string(data))
		out := make(chan remotecommand.TerminalSize)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		go readSizes(ctx, r, out)
		n := 0
		for range out {
			n++
		}
		if ctx.Err() != nil {
			t.Error("hung")
		}
		if n > len(data) {
			t.Errorf("%d sizes from %d bytes", n, len(data))
		}
		if r.Len() > 0 {
			t.Errorf("%d bytes were left unread", r.Len())
		}
	})
}

func TestStatusText(t *testing.T) {
	for _, c := range []struct {
		exit int32
		err  error
		want string
	}{
		{0, nil, `{"status":"Success"}`},
		{137, nil, `{"status":"Failure","message":"command terminated with exit code 137","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"137"}]}}`},
		{0, fmt.Errorf("no \"x\""), `{"status":"Failure","message":"no \"x\"","reason":"InternalError","code":500}`},
	} {
		if got := string(status(c.exit, c.err)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
