package nthcall

import (
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// most is how many frames of a stack are looked at.
const most = 32

// symbols returns the functions of a Go program, or nil.
func symbols(path string) *gosym.Table {
	file, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	lines, text := file.Section(".gopclntab"), file.Section(".text")
	if lines == nil || text == nil {
		return nil
	}
	data, err := lines.Data()
	if err != nil {
		return nil
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil
	}
	return table
}

// stack follows the frame pointers, which Go keeps.
func stack(pid int, pc, sp, bp uint64, table *gosym.Table) (names []string) {
	if table == nil {
		return nil
	}
	add := func(pc uint64) {
		if f := table.PCToFunc(pc); f != nil && !strings.HasPrefix(f.Name, "runtime.") {
			names = append(names, f.Name)
		}
	}
	add(pc)
	if ret, ok := word(pid, sp); ok {
		add(ret - 1)
	}
	for range most {
		ret, ok1 := word(pid, bp+8)
		next, ok2 := word(pid, bp)
		if !ok1 || !ok2 || next <= bp {
			break
		}
		add(ret - 1)
		bp = next
	}
	return names
}

// word reads eight bytes of a process.
func word(pid int, at uint64) (uint64, bool) {
	var b [8]byte
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: uintptr(at), Len: 8}}, 0)
	return binary.NativeEndian.Uint64(b[:]), err == nil && n == 8
}
