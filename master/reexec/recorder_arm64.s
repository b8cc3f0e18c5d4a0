#include "textflag.h"

// func addresses() (handler, restore uintptr)
// The kernel has a restorer of its own.
TEXT ·addresses(SB), NOSPLIT, $0-16
	MOVD $·recorder(SB), R0
	MOVD R0, handler+0(FP)
	MOVD ZR, restore+8(FP)
	RET

// func recorder()
// As the kernel calls it: the signal is in R0, its siginfo's address in R1, and LR returns from the handler.
TEXT ·recorder(SB), NOSPLIT|NOFRAME, $0
	SUB $16, RSP
	MOVW 8(R1), R3
	ADDW $42, R3, R3 // si_code: codeMark
	CBNZW R3, write
	ORR $0x80, R0, R0 // isMark
write:
	MOVD R0, (RSP)
	MOVW ·recordTo(SB), R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $64, R8 // write(2)
	SVC
	ADD $16, RSP
	RET

// func restorer()
TEXT ·restorer(SB), NOSPLIT|NOFRAME, $0
	RET
