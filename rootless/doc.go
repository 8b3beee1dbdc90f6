// Package rootless makes the node: the user, mount, PID, IPC, UTS and network
// namespaces in which an ordinary user is root and pods can live. Rootlesskit
// does the work that needs newuidmap, a network helper and a port driver; this
// package wires it, gives the node a writable file system view, and keeps one
// server process running in it.
//
// Processes, from the outside in:
//
//	Run (parent)      in the host's namespaces: ID maps, uplink, port driver
//	└─ child          PID 1 of the node: mounts, reaps orphans
//	   └─ supervisor  starts the server again when it ends; SIGHUP replaces it
//	      └─ server   Config.Server, root in the user namespace, in the host's
//	                  network namespace
//
// The server may end at any time without harm to the containers, and once one has
// served in the node, no failure of a server to start ends the node: see supervisor.
// When parent, child or supervisor end, the kernel ends everything in the PID namespace.
//
// # What happens on SIGTERM
//
// SIGTERM or SIGINT to the parent ends the node, in this order:
//
//  1. The parent forwards the signal to the child, and the child to the supervisor
//     (rootlesskit's signal proxies; in a nested node startNested and
//     superviseAndReap). A supervisor that waits for the next start of a server ends
//     at once.
//  2. The supervisor sends SIGTERM to the server, and SIGKILL after
//     serverStopTimeout.
//  3. The server ends its subscriptions, lets requests under way end for stopGrace,
//     then ends them and its streams, and closes its stores (runServer of
//     cmd/subpod-server). It does not touch containers.
//  4. The supervisor ends, and with it the child, the node's PID 1. The kernel sends
//     SIGKILL to everything else in the PID namespace: containers are killed, not
//     stopped. (Without a PID namespace killOrphans does this.) To stop them with their
//     grace periods, stop the pods first.
//  5. The parent ends the uplink's program, removes the node's directory, releases the
//     locks of the run and the data directory, and exits with status 0.
//
// A parent whose node cannot be reaped reports errNotReaped after slowestStop. Reset
// waits for all of this, for as long as its caller says.
//
// SIGHUP is forwarded in the same way; the supervisor then replaces the server only.
//
// All of these processes are re-executions of one binary, so Dispatch must be the first
// call in its main. docs/rootless.md has the rest.
package rootless
