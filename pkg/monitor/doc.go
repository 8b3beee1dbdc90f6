// Package monitor is the container monitor: one process of the node that does for all
// containers what a conmon does for one. It reads what they write, writes their logs in the
// CRI format, passes streams to attached clients, and knows how they have ended.
//
// It may be killed at any time. The node's first process (package keeper) has a copy of each
// descriptor and of each exit status, and what is on its way from a pipe to a log is in
// memory and in pipes that outlive the process (journal), so that the next monitor goes on at
// the byte where this one was: none is lost, and none written twice.
//
// It opens no file: whoever registers a container brings its files. So Landlock leaves it
// none, and it has no capability.
package monitor
