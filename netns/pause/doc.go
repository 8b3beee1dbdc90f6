// Package pause makes the program of a pause process, the first process of a PID
// namespace. Containers that share the namespace can see that process, and those with
// CAP_SYS_PTRACE can make it do whatever it may do itself. So it may do nothing: it
// takes everything away from itself, and what remains is waiting.
//
// A program of a few hundred instructions has no libraries, no heap, no runtime that
// needs system calls of its own; nothing is executed after the seccomp filter is in
// force, so the filter can be as narrow as the program. It is compiled here from a list
// of system calls (Program) for amd64 and arm64, into an ELF file of a few kilobytes:
// neither building subpod nor running it needs a C compiler.
package pause
