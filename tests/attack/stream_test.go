package attack

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStreamServer: the server of exec, attach and port-forward sessions listens on
// loopback, of the host and of the node, where other users and containers on the node's
// network reach it. They get no session by it, and keep nobody from one.
func TestStreamServer(t *testing.T) {
	c := newCage(t)
	attacker := c.run(inmate{pid: ownPID, net: onNode})
	victim := c.run(inmate{pid: ownPID})
	session := func() *url.URL {
		t.Helper()
		resp, err := c.cri.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: victim, Cmd: []string{"true"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(resp.Url)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	t.Run("tokens", func(t *testing.T) {
		used := session()
		resp, err := http.Get(used.String()) // not a session: it uses the token up
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		waiting := session()
		c.in(t).escape(attacker, "tokens", used.Host, used.Path, waiting.Path)
	})
	t.Run("connections", func(t *testing.T) {
		c := c.in(t)
		done := make(chan string, 1)
		go func() {
			resp, err := c.cri.ExecSync(c.Context(), &runtimeapi.ExecSyncRequest{ContainerId: attacker, Cmd: []string{"/attack", "escape-hold", session().Host, "2500"}, Timeout: 100})
			done <- fmt.Sprint(string(resp.GetStdout()), string(resp.GetStderr()), err)
		}()
		for held := false; !held; {
			held = strings.Contains(c.exec(attacker, "sh", "-c", "test -e /tmp/held && echo held; true"), "held")
		}
		for range 3 {
			if out, err := c.n.TryCrictl("exec", victim, "echo", "in"); err != nil || !strings.Contains(out, "in") {
				c.Errorf("the attacker keeps others from sessions: %s, %v", out, err)
			}
		}
		c.exec(attacker, "touch", "/tmp/enough")
		if out := <-done; !strings.Contains(out, tried) {
			c.Errorf("the attack was not tried to its end: %s", out)
		}
	})
}

// tryTokens asks for sessions: args are the host, the path of a token that is used up,
// and that of one that waits, of which the attacker knows all but the end.
func tryTokens(args []string) error {
	host, used, waiting := args[0], args[1], args[2]
	token := waiting[strings.LastIndex(waiting, "/")+1:]
	paths := []string{used, "/attach/" + token, "/portforward/" + token, "/exec/", "/exec/..", "/exec/" + token[:len(token)-1], "/exec/" + strings.ToLower(token), "/exec/" + token + "=", "/", "/metrics", "/debug/pprof/"}
	for i := range 500 {
		paths = append(paths, "/exec/"+token[:18]+fmt.Sprintf("%04d", i))
	}
	for _, path := range paths {
		if path == waiting {
			continue
		}
		for _, method := range []string{"GET", "POST"} {
			conn, err := net.Dial("tcp", host)
			if err != nil {
				return err
			}
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", method, path)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if resp.StatusCode < 300 || path == used && resp.StatusCode != http.StatusNotFound {
				got("%s %s: %s", method, path, resp.Status)
			}
			conn.Close()
		}
	}
	return nil
}

// holdConnections opens connections and asks for nothing, again and again: args are the
// address and how many.
func holdConnections(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conns := make([]net.Conn, n)
	open := func() (opened int) {
		for i := range conns {
			if conns[i] != nil && !isClosed(conns[i]) {
				continue
			}
			if conn, err := net.DialTimeout("tcp", args[0], time.Second); err == nil {
				conns[i] = conn
				opened++
			}
		}
		return opened
	}
	fmt.Println(open(), "connections")
	if err := touch("/tmp/held"); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); !exists("/tmp/enough") && time.Now().Before(end); {
		open()
	}
	return nil
}

func isClosed(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Microsecond))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func touch(name string) error { return os.WriteFile(name, nil, 0o644) }

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// openAll opens its arguments, and prints what is in them.
func openAll(args []string) error {
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err == nil {
			got("%s: %.200s", name, b)
			continue
		}
		fmt.Println(err)
	}
	return nil
}
