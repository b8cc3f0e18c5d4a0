package reuseport

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/hash"
)

// MaxSlots is the largest number of slots that the kernel can be made to pick from by a classic program; the one that counts
// (countingProgram) has a loop, and can pick from hash.MaxSlots.
// A program has at most 4096 instructions (BPF_MAXINSNS), enough for 223 slots, but
// in the kernel's own form it must also fit into net.core.optmem_max, which is 20,480
// bytes by default before Linux 6.7: enough for 134.
const MaxSlots = 128

// Where the program finds things: offsets into the packet from its network header on,
// as loads that begin with SKF_NET_OFF count (linux/filter.h). Multi-byte loads are in
// network byte order. In IPv6 a source address has its place whatever headers follow;
// addresses that are IPv4-mapped do not come in over the network (the kernel drops
// them, ip6_rcv_core).
const (
	network    = 0xfff00000 // SKF_NET_OFF, -0x100000
	version    = network
	ipv4Source = network + 12
	ipv4To     = network + 16
	ipv6Source = network + 8
	ipv6To     = network + 24
)

// Scratch memory of the program: classic BPF has two registers, and mix needs both.
const (
	cellKey = iota
	cellScore
	cellIndex
)

// program returns the program by which the kernel picks the socket of the client's slot,
// as hash.Key.Slot would: indexes says, for each slot, which place its socket has in
// the group. What comes to a slot's own address gets that slot's socket, or the one at
// place absent if there is no such slot. The loop over the slots is unrolled, since classic BPF only jumps forward.
func program(config hash.Config, indexes []int, absent int) []bpf.Instruction {
	four, six := keyOfIPv4(config), keyOfIPv6(config)
	if own := config.Slots; own.IsValid() && own.Addr().Is4() {
		four = append(keyOfSlot(own, ipv4To, len(indexes), absent, len(four)), four...)
	} else if own.IsValid() {
		six = append(keyOfSlot(own, ipv6To, len(indexes), absent, len(six)), six...)
	}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: version, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: uint8(len(four) + 1)},
	}
	p = append(p, four...)
	p = append(p, bpf.Jump{Skip: uint32(len(six))})
	p = append(p, six...)
	p = append(p, bpf.StoreScratch{Src: bpf.RegA, N: cellKey})
	for slot, index := range indexes {
		p = append(p, compete(slot, index)...)
	}
	return append(p,
		bpf.LoadScratch{Dst: bpf.RegA, N: cellIndex},
		bpf.RetA{},
	)
}

// keyOfIPv4 leaves the key of an IPv4 client in A.
func keyOfIPv4(config hash.Config) []bpf.Instruction {
	start, mask := config.IPv4Words()
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: ipv4Source, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: start},
	}, mix...)
}

// keyOfIPv6 leaves the key of an IPv6 client in A.
func keyOfIPv6(config hash.Config) []bpf.Instruction {
	start, masks := config.IPv6Words()
	p := []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegA, Val: start}}
	for i, mask := range masks {
		p = append(p,
			bpf.TAX{},
			bpf.LoadAbsolute{Off: ipv6Source + 4*uint32(i), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
		)
		p = append(p, mix...)
	}
	return p
}

// keyOfSlot leaves a key in A that only the slot wins whose own address a packet comes to, and skips what follows: so
// many instructions, which packets to other addresses come to.
func keyOfSlot(own hash.SlotAddresses, to uint32, slots, absent, follow int) []bpf.Instruction {
	factor, winner := hash.SlotKeyWords()
	slot := append([]bpf.Instruction{ // A is its number
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(slots), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(absent)},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: factor},
	}, mix...)
	slot = append(slot,
		bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: winner},
		bpf.Jump{Skip: uint32(follow)},
	)
	// From the last word on, whose host bits are the number, to the first.
	words := own.Addr().AsSlice()
	last := len(words) - 4
	base := binary.BigEndian.Uint32(words[last:])
	p := append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: to + uint32(last), Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: base},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: ^uint32(0) >> (own.Bits() - 8*last), SkipTrue: uint8(len(slot))},
	}, slot...)
	for at := last - 4; at >= 0; at -= 4 {
		p = append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: to + uint32(at), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(words[at:]), SkipTrue: uint8(len(p))},
		}, p...)
	}
	return p
}

// compete lets a slot try to beat the best score so far: 18 instructions for each slot,
// 16 for the first.
func compete(slot, index int) []bpf.Instruction {
	p := append([]bpf.Instruction{
		bpf.LoadScratch{Dst: bpf.RegA, N: cellKey},
		bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: hash.SlotConstant(slot)},
	}, mix...)
	if slot > 0 {
		p = append(p,
			bpf.LoadScratch{Dst: bpf.RegX, N: cellScore},
			bpf.JumpIfX{Cond: bpf.JumpGreaterThan, SkipFalse: 3},
		)
	}
	return append(p,
		bpf.StoreScratch{Src: bpf.RegA, N: cellScore},
		bpf.LoadConstant{Dst: bpf.RegA, Val: uint32(index)},
		bpf.StoreScratch{Src: bpf.RegA, N: cellIndex},
	)
}

// mix is the function of that name in package hash: from A to A.
var mix = []bpf.Instruction{
	bpf.TAX{}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16}, bpf.ALUOpX{Op: bpf.ALUOpXor},
	bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x85ebca6b},
	bpf.TAX{}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 13}, bpf.ALUOpX{Op: bpf.ALUOpXor},
	bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0xc2b2ae35},
	bpf.TAX{}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16}, bpf.ALUOpX{Op: bpf.ALUOpXor},
}

// attach makes the kernel pick by p from now on, in the whole group of the socket. It
// replaces another program in one step: no client finds the group without.
func attach(fd int, p []bpf.Instruction) error {
	return setProgram(fd, unix.SO_ATTACH_REUSEPORT_CBPF, p)
}

// setProgram sets a program as a socket's option.
func setProgram(fd, option int, p []bpf.Instruction) error {
	raw, err := bpf.Assemble(p)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	if err == unix.ENOMEM {
		return fmt.Errorf("%w: a program of %d instructions; raise the sysctl net.core.optmem_max",
			os.NewSyscallError("setsockopt", err), len(code))
	}
	return os.NewSyscallError("setsockopt", err)
}
