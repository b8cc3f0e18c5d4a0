#include "textflag.h"

// func addresses() (handler, restore uintptr)
TEXT ·addresses(SB), NOSPLIT, $0-16
	LEAQ ·recorder(SB), AX
	MOVQ AX, handler+0(FP)
	LEAQ ·restorer(SB), AX
	MOVQ AX, restore+8(FP)
	RET

// func recorder()
// As the kernel calls it: the signal is in DI, its siginfo's address in SI, and the restorer's on the stack.
TEXT ·recorder(SB), NOSPLIT|NOFRAME, $0
	SUBQ $16, SP
	CMPL 8(SI), $-42 // si_code: codeMark
	JNE  write
	ORL  $0x80, DI   // isMark
write:
	MOVQ DI, (SP)
	MOVL ·recordTo(SB), DI
	MOVQ SP, SI
	MOVL $1, DX
	MOVL $1, AX // write(2)
	SYSCALL
	ADDQ $16, SP
	RET

// func restorer()
TEXT ·restorer(SB), NOSPLIT|NOFRAME, $0
	MOVL $15, AX // rt_sigreturn(2)
	SYSCALL
	INT $3
