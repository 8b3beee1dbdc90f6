// Package landlock confines threads, and the programs that they start, to some files,
// without TCP, or without signals and abstract sockets to others (landlock(7)). It is
// for threads: the library confines all of a process.
//
// What the running kernel knows of it is enforced, and Rules.Missing tells what is not.
// The version of Landlock counts, not that of the kernel, which may have it switched off.
package landlock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Access is a set of rights on files, and on directories with all below them.
type Access landlock.AccessFSSet

const (
	// Read allows reading files and listing directories.
	Read Access = ll.AccessFSReadFile | ll.AccessFSReadDir
	// Execute allows executing files.
	Execute Access = ll.AccessFSExecute
	// Write allows writing to files that are there.
	Write Access = ll.AccessFSWriteFile | ll.AccessFSTruncate
	// Control allows ioctl(2) on devices.
	Control Access = ll.AccessFSIoctlDev
	// Change allows everything but Execute, Control and connecting to sockets: making and
	// removing files of all kinds, and moving them to where Change is allowed, too.
	Change = Read | Write | ll.AccessFSRefer | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile | ll.AccessFSMakeChar | ll.AccessFSMakeDir |
		ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeBlock | ll.AccessFSMakeSym
	// ChangePlain is Change for regular files and directories only: nothing else can be made.
	ChangePlain = Change &^ (ll.AccessFSMakeChar | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeBlock | ll.AccessFSMakeSym)
)

// onFiles are the rights that a file can have which is no directory.
const onFiles = Read&^ll.AccessFSReadDir | Execute | Write | Control

// Files allows access to paths.
type Files struct {
	Access Access
	// Paths: links are followed. What does not exist, or cannot be reached, is left out.
	Paths []string
}

// Rules are what a thread may still do. The zero value allows everything.
type Rules struct {
	// Files that may be used, and no others; empty for all. With Files mount(2) fails
	// (EPERM), and what was opened before stays open. Owners, modes, attributes and
	// looking at files (stat) are not ruled.
	Files []Files
	// NoListen forbids binding TCP sockets, NoConnect connecting them and, where the
	// kernel can, sending UDP.
	NoListen, NoConnect bool
	// ConnectTo are TCP ports that NoConnect still allows, of any host.
	ConnectTo []uint16
	// Scoped forbids signals to processes, and connections to abstract unix sockets, that
	// are not of the same domain: each call of Enter makes one, which all that the thread
	// starts shares.
	Scoped bool
}

// Versions of Landlock, and of Linux with them.
const (
	versionRefer  = 2 // 5.19
	versionNet    = 4 // 6.7
	versionScopes = 6 // 6.12
)

// Enter puts the calling thread, and what it starts, under r for good. The caller has
// locked the goroutine to the thread and never unlocks it. The thread has no_new_privs,
// or CAP_SYS_ADMIN in its user namespace. It is no error that the kernel enforces less.
func (r Rules) Enter() error {
	fd, flags, err := r.ruleset()
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := ll.LandlockRestrictSelf(fd, flags); err != nil {
		return fmt.Errorf("restrict the thread: %w", err)
	}
	return nil
}

// ruleset returns -1 where the kernel can enforce nothing of r.
func (r Rules) ruleset() (fd int, flags uint32, err error) {
	config := landlock.Config{}
	if len(r.Files) > 0 {
		config.HandledAccessFS = landlock.V11.HandledAccessFS
	}
	if r.NoListen {
		config.HandledAccessNet |= ll.AccessNetBindTCP
	}
	if r.NoConnect {
		config.HandledAccessNet |= ll.AccessNetConnectTCP | ll.AccessNetConnectSendUDP
	}
	if r.Scoped {
		config.Scoped = landlock.V11.Scoped
	}
	var rules []landlock.Rule
	for _, files := range r.Files {
		for _, path := range files.Paths {
			access, err := usable(files.Access, path)
			if err != nil {
				return -1, 0, fmt.Errorf("allow %s: %w", path, err)
			}
			if access != 0 {
				rules = append(rules, landlock.PathAccess(landlock.AccessFSSet(access), path).IgnoreIfMissing())
			}
		}
	}
	if r.NoConnect {
		for _, port := range r.ConnectTo {
			rules = append(rules, landlock.ConnectTCP(port))
		}
	}
	return config.BestEffort().NewRulesetFD(rules...)
}

// usable returns what of access can be allowed to path, 0 for nothing.
func usable(access Access, path string) (Access, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		return 0, nil
	}
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return access, err
	}
	if access &= onFiles; refused(access, path) {
		return 0, nil
	}
	return access, nil
}

// refused reports whether the kernel takes no rule for a file because it is its own, of
// no mount: such files are open to all. Which ones are depends on its version.
func refused(access Access, path string) bool {
	var fs unix.Statfs_t
	if access == 0 || unix.Statfs(path, &fs) != nil {
		return false
	}
	switch fs.Type {
	default:
		return false
	case unix.NSFS_MAGIC, unix.PIPEFS_MAGIC, unix.SOCKFS_MAGIC, unix.ANON_INODE_FS_MAGIC:
	}
	config := landlock.Config{HandledAccessFS: landlock.V11.HandledAccessFS}
	fd, _, err := config.BestEffort().NewRulesetFD(landlock.PathAccess(landlock.AccessFSSet(access), path))
	if fd >= 0 {
		unix.Close(fd)
	}
	return err != nil
}

// Version returns the version of Landlock that the kernel has, 0 for none.
func Version() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}

// Missing returns what of r this kernel does not enforce, as a sentence without an end;
// "" when it enforces all.
func (r Rules) Missing() string { return r.missing(Version()) }

func (r Rules) missing(version int) string {
	if version == 0 {
		return "the kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, and \"landlock\" in lsm=)"
	}
	var missing []string
	if len(r.Files) > 0 && version < versionRefer && r.moves() {
		missing = append(missing, "files (Linux 5.19)")
	}
	if (r.NoListen || r.NoConnect) && version < versionNet {
		missing = append(missing, "TCP (Linux 6.7)")
	}
	if r.Scoped && version < versionScopes {
		missing = append(missing, "signals and abstract sockets (Linux 6.12)")
	}
	if len(missing) == 0 {
		return ""
	}
	return "the kernel's Landlock cannot rule " + strings.Join(missing, ", ")
}

// moves reports whether a rule allows moving files between directories, which the first
// version forbids once it rules any file: such rules are not enforced by it at all.
func (r Rules) moves() bool {
	for _, f := range r.Files {
		if f.Access&ll.AccessFSRefer != 0 {
			return true
		}
	}
	return false
}
