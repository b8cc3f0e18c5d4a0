package reuseport

import (
	"github.com/cilium/ebpf/asm"

	"github.com/handfast/handfast/hash"
)

// layout is the number of the eBPF program and of what its maps look like. Raise it with any change of what it does: a program that takes another's place
// goes on with what that has loaded if it is of the same layout.
const layout = 1

// The first map has tables, of which the program uses one: words of 32 bits in the machine's byte order, and then two for each slot, its
// constant, and its number and place. A table is written while another one is in use; so all changes in one step.
const (
	tables = 16 // so that none is written again while the program, on some processor, still reads it

	tableSlots   = 0  // how many there are
	tableAbsent  = 4  // place of what comes to a slot's own address that is not there
	tableStart4  = 8  // of hash.Config.IPv4Words
	tableMask4   = 12 // likewise
	tableStart6  = 16 // of IPv6Words
	tableMask6   = 20 // likewise, four
	tableFamily  = 36 // of slots' addresses: 4, 6, or 0 for none
	tableOwn     = 40 // the words of the first one, of IPv6, or one of IPv4
	tableOthers  = 56 // the highest number that its last word leaves room for
	tableCurrent = 60 // in the first table: number of the one in use
	tableEntries = 64
	entrySize    = 8                                          // constant, number<<16 | place
	tableSize    = tableEntries + entrySize*(hash.MaxSlots+1) // a pointer behind the last one must not leave the table
)

// Where the program keeps things on its stack. What is written more than once begins in the middle of eight bytes: else Linux 6.1
// takes it for a saved register, and without CAP_PERFMON that may not be written over in part (check_stack_write_fixed_off).
const (
	stackKey    = -4  // of a map
	stackFlags  = -12 // of the TCP header
	stackHeader = -56 // the first headerLen bytes of the network header, and of what follows it
	headerLen   = 40  // of IPv6, and of IPv4 with a TCP header at least
)

const (
	fromNetwork = 1 // BPF_HDR_START_NET: offsets count from the network header
	protocolTCP = 6
	tcpFlags    = 13         // offset in the TCP header
	synAck, syn = 0x12, 0x02 // flags, and what of them the first packet of a handshake has
)

// countingProgram returns the program that does what program does, in eBPF, and counts in the second map the handshakes that begin, by
// processor and slot: entry slot + processor*hash.MaxSlots. It does not depend on the configuration, which is in the first map: so it is
// loaded once, which needs a right (CAP_BPF), and used without. It picks from so many slots at most: the kernel follows the loop to its
// end when it checks the program, which takes it 5 ms for 128 slots and 40 ms for 1024, and more than twice as long without CAP_PERFMON.
//
// It is of the type of socket filters, and returns a place, as the classic program does (run_bpf_filter in net/core/sock_reuseport.c):
// programs of the type SK_REUSEPORT need another right (CAP_NET_ADMIN), and a map of sockets to choose from.
//
// No pointer is moved by what is not constant, since without CAP_PERFMON the verifier allows that but for one value on all paths
// (sanitize_ptr_alu in kernel/bpf/verifier.c).
func countingProgram(tablesMap, counts, limit int) asm.Instructions {
	const (
		ctx, table, key, temp = asm.R6, asm.R7, asm.R8, asm.R9 // which calls leave alone
		flags                 = asm.R6                         // when ctx is not needed any more
		score, value          = asm.R5, asm.R3                 // of the loop over the slots
		best, slots, slot, at = asm.R0, asm.R2, asm.R4, asm.R1 // likewise
	)
	var p asm.Instructions
	add := func(more ...asm.Instruction) { p = append(p, more...) }
	lookup := func(mapFD int) { // of the key on the stack; R0 is the entry
		add(asm.LoadMapPtr(asm.R1, mapFD),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackKey),
			asm.FnMapLookupElem.Call())
	}
	load := func(offset asm.Register, to int32, length int32) { // from the packet, from R2 on
		if offset != asm.R2 {
			add(asm.Mov.Reg(asm.R2, offset))
		}
		add(asm.Mov.Reg(asm.R1, ctx),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to),
			asm.Mov.Imm(asm.R4, length), asm.Mov.Imm(asm.R5, fromNetwork),
			asm.FnSkbLoadBytesRelative.Call())
	}
	word := func(to asm.Register, offset int16) { // of the packet's header, in the machine's byte order
		add(asm.LoadMem(to, asm.RFP, stackHeader+offset, asm.Word), asm.HostTo(asm.BE, to, asm.Word))
	}
	mix := func(x, temp asm.Register) { // the function of that name in package hash
		for _, step := range []struct {
			shift  int32
			factor int64
		}{{16, 0x85ebca6b}, {13, 0xc2b2ae35}, {16, 0}} {
			add(asm.Mov.Reg32(temp, x), asm.RSh.Imm32(temp, step.shift), asm.Xor.Reg32(x, temp))
			if step.factor != 0 {
				add(asm.Mul.Imm32(x, int32(step.factor)))
			}
		}
	}
	own := func(family int32, to int16, words int16, otherwise string) { // the key that a slot wins whose own address it is
		add(asm.LoadMem(temp, table, tableFamily, asm.Word), asm.JNE.Imm(temp, family, otherwise))
		for i := range words {
			word(key, to+4*i)
			add(asm.LoadMem(temp, table, tableOwn+4*i, asm.Word), asm.Xor.Reg32(key, temp))
			if i < words-1 {
				add(asm.JNE.Imm(key, 0, otherwise))
			}
		}
		factor, winner := hash.SlotKeyWords()
		add(asm.LoadMem(temp, table, tableOthers, asm.Word), asm.JGT.Reg(key, temp, otherwise),
			asm.LoadMem(temp, table, tableSlots, asm.Word), asm.JGE.Reg(key, temp, "absent"),
			asm.Add.Imm32(key, 1), asm.Mul.Imm32(key, int32(factor)))
		mix(key, temp)
		add(asm.Xor.Imm32(key, int32(winner)), asm.Ja.Label("slots"))
	}
	at0 := func(label string, i asm.Instruction) asm.Instruction { return i.WithSymbol(label) }

	// The table in use.
	add(at0("count", asm.Mov.Reg(ctx, asm.R1)), asm.StoreImm(asm.RFP, stackKey, 0, asm.Word))
	lookup(tablesMap)
	add(asm.JEq.Imm(asm.R0, 0, "nobody"),
		asm.LoadMem(asm.R1, asm.R0, tableCurrent, asm.Word), asm.StoreMem(asm.RFP, stackKey, asm.R1, asm.Word))
	lookup(tablesMap)
	add(asm.JEq.Imm(asm.R0, 0, "nobody"), asm.Mov.Reg(table, asm.R0))

	// The headers. R9 is where the flags are, or 0.
	add(asm.Mov.Imm(asm.R2, 0))
	load(asm.R2, stackHeader, headerLen)
	add(asm.JNE.Imm(asm.R0, 0, "nobody"),
		asm.StoreImm(asm.RFP, stackFlags, syn, asm.Word), // if they are not found
		asm.LoadMem(asm.R1, asm.RFP, stackHeader, asm.Byte), asm.Mov.Reg(temp, asm.R1), asm.And.Imm(asm.R1, 0xf0),
		asm.JEq.Imm(asm.R1, 0x60, "flags of IPv6"),
		asm.And.Imm(temp, 0x0f), asm.LSh.Imm(temp, 2), asm.Ja.Label("flags"),
		at0("flags of IPv6", asm.Mov.Imm(temp, 40)),
		asm.LoadMem(asm.R1, asm.RFP, stackHeader+6, asm.Byte), asm.JNE.Imm(asm.R1, protocolTCP, "key"), // another header follows
		at0("flags", asm.Add.Imm(temp, tcpFlags)))
	load(temp, stackFlags, 1)

	// The key.
	add(at0("key", asm.LoadMem(flags, asm.RFP, stackFlags, asm.Byte)),
		asm.LoadMem(asm.R1, asm.RFP, stackHeader, asm.Byte), asm.And.Imm(asm.R1, 0xf0), asm.JEq.Imm(asm.R1, 0x60, "IPv6"))
	own(4, 16, 1, "IPv4")
	add(at0("IPv4", asm.LoadMem(temp, table, tableMask4, asm.Word)))
	word(key, 12)
	add(asm.And.Reg32(key, temp), asm.LoadMem(temp, table, tableStart4, asm.Word), asm.Xor.Reg32(key, temp))
	mix(key, temp)
	add(asm.Ja.Label("slots"))
	add(at0("IPv6", asm.Mov.Imm(key, 0)))
	own(6, 24, 4, "IPv6 client")
	add(at0("IPv6 client", asm.LoadMem(key, table, tableStart6, asm.Word)))
	for i := range int16(4) {
		word(asm.R1, 8+4*i)
		add(asm.LoadMem(temp, table, tableMask6+4*i, asm.Word), asm.And.Reg32(asm.R1, temp), asm.Xor.Reg32(key, asm.R1))
		mix(key, temp)
	}

	// The slots. The first score is not below 0.
	add(at0("slots", asm.LoadMem(slots, table, tableSlots, asm.Word)),
		asm.JEq.Imm(slots, 0, "absent"), asm.JGT.Imm(slots, int32(limit), "nobody"),
		asm.Mov.Reg(at, table), asm.Add.Imm(at, tableEntries),
		asm.Mov.Imm(best, 0), asm.Mov.Imm(value, 0), asm.Mov.Imm(slot, 0),
		at0("slot", asm.LoadMem(score, at, 0, asm.Word)), asm.Xor.Reg32(score, key))
	mix(score, temp)
	add(asm.JLT.Reg(score, best, "next"),
		asm.Mov.Reg(best, score), asm.LoadMem(value, at, 4, asm.Word),
		at0("next", asm.Add.Imm(at, entrySize)), asm.Add.Imm(slot, 1),
		asm.JGT.Reg(slots, slot, "slot"))

	// The count, of what begins a handshake.
	add(asm.Mov.Reg(key, value), asm.And.Imm(key, 0xffff), asm.RSh.Imm(value, 16), asm.Mov.Reg(temp, value),
		asm.And.Imm(flags, synAck), asm.JNE.Imm(flags, syn, "place"),
		asm.FnGetSmpProcessorId.Call(),
		asm.Mul.Imm32(asm.R0, hash.MaxSlots), asm.Add.Reg32(asm.R0, temp), asm.StoreMem(asm.RFP, stackKey, asm.R0, asm.Word))
	lookup(counts)
	add(asm.JEq.Imm(asm.R0, 0, "place"), asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		at0("place", asm.Mov.Reg(asm.R0, key)), asm.Return(),
		at0("absent", asm.LoadMem(asm.R0, table, tableAbsent, asm.Word)), asm.Return(),
		at0("nobody", asm.Mov.Imm(asm.R0, -1)), asm.Return()) // no place: the kernel falls back to its own hash; it does not come to that
	return p
}
