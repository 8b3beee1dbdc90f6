// Command stream opens one streaming session with client-go, the client library
// of kubectl and crictl, so that pkg/stream is tested against the real thing:
//
//	stream [-ws] [-tty] [-stdin] [-stderr=false] command URL
//	stream [-ws] forward URL PORT         (prints the local port)
//
// A command session's exit code is the command's; 125 means that the session
// itself failed. Port forwarding ends with stdin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// failed is the exit code for a session that failed itself.
const failed = 125

var (
	ws     = flag.Bool("ws", false, "WebSocket instead of SPDY")
	proto  = flag.String("protocol", "", "the only WebSocket subprotocol to ask for; v5 when empty")
	tty    = flag.Bool("tty", false, "a terminal, 80x24 first, then 132x50")
	stdin  = flag.Bool("stdin", false, "send stdin")
	stderr = flag.Bool("stderr", true, "receive stderr")
)

func main() {
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "command":
		err = command(flag.Arg(1))
	case "forward":
		err = forward(flag.Arg(1), flag.Arg(2))
	default:
		err = errors.New("command or forward?")
	}
	var exit utilexec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exit.ExitStatus())
	default:
		fmt.Fprintln(os.Stderr, "session:", err)
		os.Exit(failed)
	}
}

func command(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return err
	}
	var executor remotecommand.Executor
	switch {
	case *ws && *proto != "":
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, raw, *proto)
	case *ws:
		executor, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, raw)
	default:
		executor, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	}
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
	if *stdin {
		o.Stdin = os.Stdin
	}
	if *stderr && !*tty {
		o.Stderr = os.Stderr
	}
	if *tty {
		sizes := make(sizes, 2)
		sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
		sizes <- remotecommand.TerminalSize{Width: 132, Height: 50}
		o.TerminalSizeQueue = sizes
	}
	return executor.StreamWithContext(context.Background(), o)
}

// sizes is a remotecommand.TerminalSizeQueue.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size := <-s
	return &size
}

func forward(raw, port string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var f *portforward.PortForwarder
	ports, local := []string{"0:" + port}, []string{"127.0.0.1"}
	if *ws {
		dialer, err := portforward.NewSPDYOverWebsocketDialer(u, &rest.Config{})
		if err != nil {
			return err
		}
		f, err = portforward.NewOnAddresses(dialer, local, ports, stop, ready, io.Discard, os.Stderr)
		if err != nil {
			return err
		}
	} else {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		if err != nil {
			return err
		}
		dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
		f, err = portforward.NewOnAddresses(dialer, local, ports, stop, ready, io.Discard, os.Stderr)
		if err != nil {
			return err
		}
	}
	go func() {
		<-ready
		if forwarded, err := f.GetPorts(); err == nil {
			fmt.Println(forwarded[0].Local)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return f.ForwardPorts()
}
