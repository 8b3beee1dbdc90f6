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
// The server may end at any time without harm to the containers. When parent,
// child or supervisor end, the kernel ends everything in the PID namespace.
//
// All of these are re-executions of one binary, so Dispatch must be the first
// call in its main. docs/rootless.md tells the rest.
package rootless
