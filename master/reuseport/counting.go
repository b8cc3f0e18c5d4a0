package reuseport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
	"github.com/handfast/handfast/master/reexec"
)

// Programs are eBPF programs that are loaded, and that no group has yet. Loading one takes CAP_BPF, and the rest no right, so a process
// that gives its rights up loads as many before as it may need. A nil *Programs has none. It may be used by several goroutines.
type Programs struct {
	spare chan *counting
	slots int
}

// LoadPrograms loads so many, each of which picks from so many slots at most: MaxSlots, or hash.MaxSlots for which checking takes the
// kernel eight times as long. Else the error says why there can be none: groups do without, then.
func LoadPrograms(n, slots int) (*Programs, error) {
	p := &Programs{make(chan *counting, n), slots}
	for range n {
		one, err := loadCounting(slots)
		if err == nil && len(p.spare) == 0 {
			err = one.try()
		}
		if err != nil {
			one.close()
			p.Close()
			return nil, err
		}
		p.spare <- one
	}
	return p, nil
}

// take returns a program that the caller owns; nil: there are none.
func (p *Programs) take() *counting {
	if p == nil {
		return nil
	}
	select {
	case one := <-p.spare:
		return one
	default:
	}
	one, err := loadCounting(p.slots)
	if err != nil {
		return nil
	}
	return one
}

// MaxSlots returns from how many slots groups can pick that are given one of the programs, or none if there are none.
func (p *Programs) MaxSlots() int {
	if p == nil {
		return MaxSlots
	}
	return p.slots
}

// Close closes those that no group has.
func (p *Programs) Close() {
	if p == nil {
		return
	}
	for {
		select {
		case one := <-p.spare:
			one.close()
		default:
			return
		}
	}
}

// counting is a program that is loaded (countingProgram), and its maps. It is for one group.
type counting struct {
	slots                   int // that it can pick from
	program, tables, counts *os.File
	tablesMemory            []byte   // shared with the kernel
	countsMemory            []byte   // likewise
	before                  []uint64 // by slot, counted by the program before; nil: nothing
}

// errLoad says that there is no eBPF here, or none for us.
func errLoad(err error) error { return fmt.Errorf("reuseport: no eBPF: %w", err) }

// loadCounting loads one that picks from so many slots at most. The caller owns it.
func loadCounting(slots int) (c *counting, err error) {
	processors, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, errLoad(err)
	}
	newMap := func(name string, value, entries int) (*ebpf.Map, error) {
		return ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(value), MaxEntries: uint32(entries), Flags: unix.BPF_F_MMAPABLE})
	}
	tablesMap, err := newMap("handfast_tables", tableSize, tables)
	if err != nil {
		return nil, errLoad(err)
	}
	defer tablesMap.Close() // what is kept are duplicates
	counts, err := newMap("handfast_counts", 8, processors*hash.MaxSlots)
	if err != nil {
		return nil, errLoad(err)
	}
	defer counts.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "handfast", Type: ebpf.SocketFilter, License: "MIT", Instructions: countingProgram(tablesMap.FD(), counts.FD(), slots)})
	if err != nil {
		return nil, errLoad(err)
	}
	defer program.Close()
	c = &counting{slots: slots}
	for _, f := range []struct {
		to   **os.File
		fd   int
		name string
	}{{&c.program, program.FD(), "eBPF program"}, {&c.tables, tablesMap.FD(), "eBPF tables"}, {&c.counts, counts.FD(), "eBPF counts"}} {
		fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			c.close()
			return nil, errLoad(os.NewSyscallError("fcntl", err))
		}
		*f.to = os.NewFile(uintptr(fd), f.name)
	}
	if err := c.share(processors); err != nil {
		c.close()
		return nil, errLoad(err)
	}
	return c, nil
}

// share maps the maps into our memory, so that reading and writing them takes no system call and no right.
func (c *counting) share(processors int) (err error) {
	mapped := func(file *os.File, size int) (memory []byte, err error) {
		err = control(file, func(fd int) (err error) {
			memory, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return os.NewSyscallError("mmap", err)
		})
		return memory, err
	}
	if c.tablesMemory, err = mapped(c.tables, tables*tableSize); err != nil {
		return err
	}
	c.countsMemory, err = mapped(c.counts, 8*processors*hash.MaxSlots)
	return err
}

// try attaches the program to a socket of no use.
func (c *counting) try() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errLoad(os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	if err := errors.Join(share(fd), c.attach(fd)); err != nil {
		return errLoad(err)
	}
	return nil
}

// attach makes the kernel pick by the program, in the whole group of the socket, as the function of that name does.
func (c *counting) attach(fd int) error {
	return control(c.program, func(program int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, program))
	})
}

// steer has the program find the places of slots as program does. All changes in one step. Only one goroutine may do so at a time.
func (c *counting) steer(config hash.Config, indexes []int, absent int) {
	table := tableOf(config, indexes, absent)
	current := (*uint32)(unsafe.Pointer(&c.tablesMemory[tableCurrent]))
	used := int(atomic.LoadUint32(current))
	at := func(i int) []byte { return c.tablesMemory[i*tableSize:] }
	copy(table[tableCurrent:], at(used)[tableCurrent:tableCurrent+4]) // which is no part of it
	if bytes.Equal(table, at(used)[:len(table)]) {
		return
	}
	next := (used + 1) % tables
	copy(at(next)[:tableCurrent], table)
	copy(at(next)[tableEntries:tableSize], table[tableEntries:])
	atomic.StoreUint32(current, uint32(next))
}

// tableOf returns a table, without the entries of slots that are not there.
func tableOf(config hash.Config, indexes []int, absent int) []byte {
	table := make([]byte, tableEntries+entrySize*len(indexes))
	set := func(at int, words ...uint32) {
		for i, word := range words {
			binary.NativeEndian.PutUint32(table[at+4*i:], word)
		}
	}
	start4, mask4 := config.IPv4Words()
	start6, mask6 := config.IPv6Words()
	set(tableSlots, uint32(len(indexes)), uint32(absent), start4, mask4, start6)
	set(tableMask6, mask6[:]...)
	if own := config.Slots; own.IsValid() {
		words := own.Addr().AsSlice()
		set(tableFamily, 6)
		if own.Addr().Is4() {
			set(tableFamily, 4)
		}
		for at := 0; at < len(words); at += 4 {
			set(tableOwn+at, binary.BigEndian.Uint32(words[at:]))
		}
		set(tableOthers, ^uint32(0)>>(own.Bits()-8*(len(words)-4)))
	}
	for slot, index := range indexes {
		set(tableEntries+entrySize*slot, hash.SlotConstant(slot), uint32(slot)<<16|uint32(index))
	}
	return table
}

// came returns how many handshakes have begun for each slot.
func (c *counting) came() (bySlot []uint64) {
	bySlot = make([]uint64, hash.MaxSlots)
	copy(bySlot, c.before)
	for at := 0; at < len(c.countsMemory); at += 8 {
		bySlot[at/8%hash.MaxSlots] += atomic.LoadUint64((*uint64)(unsafe.Pointer(&c.countsMemory[at])))
	}
	return bySlot
}

// close is of no effect on what is attached: that stays with the sockets. A nil *counting is closed.
func (c *counting) close() {
	if c == nil {
		return
	}
	for _, memory := range [][]byte{c.tablesMemory, c.countsMemory} {
		if memory != nil {
			unix.Munmap(memory)
		}
	}
	for _, file := range []*os.File{c.program, c.tables, c.counts} {
		if file != nil {
			file.Close()
		}
	}
}

// maxProcessors is more than there are (NR_CPUS).
const maxProcessors = 1 << 14

// SavedProgram is what the next program needs to go on with a counting one.
type SavedProgram struct {
	Layout, Slots           int
	Program, Tables, Counts int // descriptors
	Processors              int
	Came                    []uint64 // by slot, for a program that cannot go on with it
}

func (c *counting) save(b *reexec.Bundle) *SavedProgram {
	if c == nil {
		return nil
	}
	return &SavedProgram{layout, c.slots, b.KeepFile(c.program), b.KeepFile(c.tables), b.KeepFile(c.counts), len(c.countsMemory) / 8 / hash.MaxSlots, c.came()}
}

// restore returns it, or another one in its place if it is of another layout; nil: there is none. The caller owns it.
func (s *SavedProgram) restore(b *reexec.Bundle, programs *Programs) (c *counting, err error) {
	if s == nil {
		return programs.take(), nil
	}
	c = &counting{slots: s.Slots}
	for _, f := range []struct {
		to   **os.File
		fd   int
		name string
	}{{&c.program, s.Program, "eBPF program"}, {&c.tables, s.Tables, "eBPF tables"}, {&c.counts, s.Counts, "eBPF counts"}} {
		if *f.to, err = b.Take(f.fd, f.name); err != nil {
			c.close()
			return nil, err
		}
	}
	if s.Layout != layout || s.Processors < 1 || s.Processors > maxProcessors {
		c.close()
		if c = programs.take(); c != nil {
			c.before = s.Came
		}
		return c, nil
	}
	if err := c.share(s.Processors); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}
