// Package egress gives processes of a pod connections at the host's speed: connect(2) of a
// TCP socket is answered by the server (seccomp_unotify(2)), which lives in the host's network
// namespace, connects a socket there and puts it into the place of the caller's.
//
// A process that has such a socket has a socket of the host, and may do with it what system
// calls do with sockets, also by a second thread while a first one waits for the server: which
// file a descriptor stands for, and which address a pointer leads to, can change after the
// server has looked. So nothing depends on that look:
//
//   - The address is read once, and the server connects to what it has read.
//   - A socket is welded before it is handed over (weld.go) to the interface of the host that leads to
//     its peer. Whatever it is connected to afterwards, by whomever it was passed on to, lies
//     beyond that interface, where the uplink leads as well: never on the host's loopback. It
//     has a port of its own that it keeps, so that it cannot be bound to another.
//   - What would send data ahead of a connection (TCP Fast Open) is refused by the filter from the
//     values of registers (filter.go).
//
// Calls that the server does not answer itself are continued by the kernel. With any socket
// that is harmless: one of the pod's stays in the pod's network, and a welded one on its interface.
//
// UDP and other protocols, sockets that listen, and sockets that are used in more than one
// place already, stay in the pod's network.
package egress
