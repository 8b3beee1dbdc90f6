package egress

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// roles are what processes of the pod do. Those named in the tests print what they have seen.
var roles = map[string]func(args []string) error{
	"blocking":    blocking,
	"nonblocking": nonblocking,
	"go":          dialGo,
	"kept":        kept,
	"options":     carriedOptions,
	"again":       connectAgain,
	"interrupted": connectInterrupted,
	"refused":     refusedCalls,
	"rewrite":     rewrite,
	"swap":        swapDescriptors,
	"many":        connectMany,
	"flood":       flood,
	"ask":         askForever,
	"sandbox":     sandbox,
}

func tcp(flags int) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|flags, 0)
	if err != nil {
		panic(err)
	}
	return fd
}

func sockaddr(text string) *unix.SockaddrInet4 {
	a := netip.MustParseAddrPort(text)
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// name returns an address as text.
func name(sa unix.Sockaddr, err error) string {
	switch s := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port)).String()
	}
	return fmt.Sprint(err)
}

// talk prints both ends of a connection as the process sees them and the greeting.
func talk(fd int) {
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	fmt.Printf("%s %s %q %v\n", name(unix.Getsockname(fd)), name(unix.Getpeername(fd)), buf[:max(n, 0)], err)
}

func blocking(args []string) error {
	fd := tcp(0)
	if err := unix.Connect(fd, sockaddr(args[0])); err != nil {
		fmt.Println(err)
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		return fmt.Errorf("the socket does not block any more: %x %v", flags, err)
	}
	talk(fd)
	return nil
}

func nonblocking(args []string) error {
	fd := tcp(unix.SOCK_NONBLOCK)
	err := unix.Connect(fd, sockaddr(args[0]))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		fmt.Println(err)
		return nil
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if _, err := unix.Poll(p, 20000); err != nil {
		return err
	}
	if value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); value != 0 || err != nil {
		fmt.Println(unix.Errno(value), err)
		return nil
	}
	p[0].Events = unix.POLLIN
	if _, err := unix.Poll(p, 20000); err != nil {
		return err
	}
	talk(fd)
	return nil
}

func dialGo(args []string) error {
	conn, err := net.DialTimeout("tcp", args[0], 20*time.Second)
	if err != nil {
		fmt.Println(err)
		return nil
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	fmt.Printf("%v %v %q %v\n", conn.LocalAddr(), conn.RemoteAddr(), buf[:n], err)
	return nil
}

// kept connects sockets that are in use elsewhere, or bound: they stay in the pod's network.
func kept(args []string) error {
	for name, prepare := range map[string]func(fd int) error{
		"dup": func(fd int) error { _, err := unix.Dup(fd); return err },
		"epoll": func(fd int) error {
			set, err := unix.EpollCreate1(0)
			if err != nil {
				return err
			}
			return unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)})
		},
		"bind": func(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{Port: 4321}) },
	} {
		fd := tcp(0)
		if err := prepare(fd); err != nil {
			return err
		}
		fmt.Println(name, unix.Connect(fd, sockaddr(args[0])))
	}
	return nil
}

func carriedOptions(args []string) error {
	fd := tcp(unix.SOCK_CLOEXEC)
	set := map[option]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1, {unix.IPPROTO_TCP, unix.TCP_NODELAY}: 1, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: 77,
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 12345, {unix.IPPROTO_IP, unix.IP_TOS}: 0x10, {unix.SOL_SOCKET, unix.SO_RCVBUF}: 40000,
	}
	for o, v := range set {
		if err := unix.SetsockoptInt(fd, o.level, o.name, v); err != nil {
			return err
		}
	}
	tv := unix.Timeval{Sec: 9}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	read := func() string {
		out := ""
		for _, o := range []option{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}, {unix.IPPROTO_IP, unix.IP_TOS}, {unix.SOL_SOCKET, unix.SO_RCVBUF}} {
			v, err := unix.GetsockoptInt(fd, o.level, o.name)
			out += fmt.Sprint(v, err, " ")
		}
		tv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO)
		flags, err2 := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return out + fmt.Sprint(tv.Sec, err, flags, err2)
	}
	before := read()
	if err := unix.Connect(fd, sockaddr(args[0])); err != nil {
		return err
	}
	if after := read(); after != before {
		return fmt.Errorf("before %s, after %s", before, after)
	}
	talk(fd)
	return nil
}

// connectAgain uses one socket for several connections: to a closed port, to one that is open, and, once that
// is disconnected, to a third address.
func connectAgain(args []string) error {
	fd := tcp(0)
	fmt.Println(unix.Connect(fd, sockaddr(args[0])))
	fmt.Println(unix.Connect(fd, sockaddr(args[1])))
	fmt.Println(unix.Connect(fd, sockaddr(args[2])))
	disconnect := func() error {
		var unspec [16]byte
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), 16)
		if errno != 0 {
			return errno
		}
		return nil
	}
	fmt.Println(disconnect())
	fmt.Println(unix.Connect(fd, sockaddr(args[2])))
	talk(fd)
	fmt.Println(disconnect())
	// The pod's own loopback: not the host's.
	fmt.Println(unix.Connect(fd, sockaddr("127.0.0.1:"+args[3])))
	return nil
}

// connectInterrupted connects two sockets to a peer that does not answer yet: a signal ends the call of the first, its time
// that of the second. Both connections are made nevertheless (connect(2)), once the peer answers.
func connectInterrupted(args []string) error {
	control, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer control.Close()
	address, err := bufio.NewReader(control).ReadString('\n')
	if err != nil {
		return err
	}
	to := sockaddr(strings.TrimSpace(address))
	if err := interruptible(unix.SIGUSR1); err != nil {
		return err
	}
	first, second := tcp(0), tcp(0)
	thread, result := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		result <- unix.Connect(first, to)
	}()
	tid := <-thread
	for end := time.Now().Add(time.Minute); name(unix.Getsockname(first)) == "0.0.0.0:0"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("the socket of a call that waits is still the pod's")
		}
	}
	for waits := true; waits; {
		if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1); err != nil {
			return err
		}
		select {
		case err := <-result:
			fmt.Println(err)
			waits = false
		case <-time.After(10 * time.Millisecond): // it may not have waited yet
		}
	}
	tv := unix.Timeval{Usec: 200000}
	if err := unix.SetsockoptTimeval(second, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return err
	}
	fmt.Println(unix.Connect(second, to))
	if _, err := control.Write([]byte("x")); err != nil {
		return err
	}
	for _, fd := range []int{first, second} {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(p, 20000); err != nil {
			return err
		}
		talk(fd)
	}
	return nil
}

// interruptible has a signal end system calls, which the handlers of Go do not.
func interruptible(s syscall.Signal) error {
	signal.Notify(make(chan os.Signal, 1), s)
	const restart = 0x10000000 // SA_RESTART
	var action struct{ handler, flags, restorer, mask uint64 }
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&action)), 8, 0, 0); errno != 0 {
		return errno
	}
	action.flags &^= restart
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// refusedCalls are those that the filter refuses.
func refusedCalls(args []string) error {
	fd := tcp(0)
	fmt.Println("sendto", unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, sockaddr(args[0])))
	_, err := unix.SendmsgN(fd, []byte("x"), nil, sockaddr(args[0]), unix.MSG_FASTOPEN)
	fmt.Println("sendmsg", err)
	_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), 0, 0, unix.MSG_FASTOPEN, 0, 0)
	fmt.Println("sendmmsg", errno)
	fmt.Println("connect", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpFastOpenConnect, 1))
	fmt.Println("no cookie", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpFastOpenNoCookie, 1))
	var params [120]byte
	_, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	fmt.Println("io_uring", errno)
	fmt.Println("own listen", unix.Listen(tcp(0), 1))
	if err := unix.Connect(fd, sockaddr(args[0])); err != nil {
		return err
	}
	unspec := [16]byte{}
	_, _, errno = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), 16)
	fmt.Println("listen", unix.Listen(fd, 1), errno)
	return nil
}

// rewrite connects to an address that a second thread changes all the time.
func rewrite(args []string) error {
	good, bad := sockaddr(args[0]), sockaddr(args[1])
	raw := &unix.RawSockaddrInet4{Family: unix.AF_INET}
	put := func(a *unix.SockaddrInet4) {
		*(*[2]byte)(unsafe.Pointer(&raw.Port)) = [2]byte{byte(a.Port >> 8), byte(a.Port)}
		raw.Addr = a.Addr
	}
	put(good)
	end := time.Now().Add(seconds(args[2]))
	go func() {
		runtime.LockOSThread()
		for time.Now().Before(end) {
			put(bad)
			put(good)
		}
	}()
	n := 0
	for ; time.Now().Before(end); n++ {
		fd := tcp(unix.SOCK_NONBLOCK)
		_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(raw)), unix.SizeofSockaddrInet4)
		unix.Close(fd)
	}
	fmt.Println(n)
	return nil
}

// swapDescriptors has a second thread put a switched socket, not connected any more, under the number
// that a first one connects: what is looked at is a socket that the kernel is left to connect.
func swapDescriptors(args []string) error {
	host, bad := tcp(unix.SOCK_NONBLOCK), sockaddr(args[1])
	// It is the host's, and is on its way nowhere.
	if err := unix.Connect(host, sockaddr(args[0])); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	unspec := [16]byte{}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(host), uintptr(unsafe.Pointer(&unspec)), 16); errno != 0 {
		return errno
	}
	mine, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	target := 100
	var done atomic.Bool
	defer done.Store(true)
	go func() {
		runtime.LockOSThread()
		for !done.Load() {
			_ = unix.Dup2(mine, target)
			_ = unix.Dup2(host, target)
		}
	}()
	swapped := 0
	for begun, length := time.Now(), seconds(args[2]); time.Since(begun) < length || swapped == 0 && time.Since(begun) < 30*time.Second; {
		// For a datagram socket the server leaves it to the kernel.
		if err := unix.Connect(target, bad); errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EALREADY) {
			swapped++
			_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(host), uintptr(unsafe.Pointer(&unspec)), 16)
		}
	}
	fmt.Println(swapped)
	return nil
}

func seconds(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		panic(err)
	}
	return d
}

// connectMany connects many times and prints how often that has failed.
func connectMany(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	bad := map[string]int{}
	for range n {
		fd := tcp(0)
		if err := unix.Connect(fd, sockaddr(args[0])); err != nil {
			bad[err.Error()]++
		}
		unix.Close(fd)
	}
	fmt.Println(len(bad), bad)
	return nil
}

// flood connects without end, by many threads.
func flood(args []string) error {
	for range 16 {
		go func() {
			runtime.LockOSThread()
			for {
				fd := tcp(unix.SOCK_NONBLOCK)
				_ = unix.Connect(fd, sockaddr(args[0]))
				unix.Close(fd)
			}
		}()
	}
	fmt.Println("floods")
	time.Sleep(time.Minute)
	return nil
}

// askForever prints what became of each connection, one after the other.
func askForever(args []string) error {
	for {
		fd := tcp(0)
		fmt.Println(unix.Connect(fd, sockaddr(args[0])))
		unix.Close(fd)
		time.Sleep(time.Millisecond)
	}
}

// sandbox connects from a network namespace that the process has made for itself.
func sandbox(args []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fmt.Println(unix.Connect(tcp(0), sockaddr(args[0])))
	return nil
}
