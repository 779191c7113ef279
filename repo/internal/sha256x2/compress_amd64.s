#include "textflag.h"

// FIPS 180-4, section 6.2, for two messages at once.
//
// Rounds. SHA256RNDS2 does two rounds of one message and needs the result of the two before. Where that takes 4 cycles, and
// the processor could begin another one after 3 or 2, it begins one of the other message here. The state is two halves, from
// the lowest double word F E B A and H G D C, the order of type state. Two rounds turn A B E F into C D G H: the result
// replaces the half C D G H and is the half A B E F from then on.
//
// Words. The 64 words of a block do not depend on the state, so both messages' are computed together by vector instructions
// for others than SHA's execution unit, four words of the first message in the low half of a register and of the second in
// the high one. SHA256MSG1 and SHA256MSG2 would take that unit's time. What is added up of words and constants goes through
// memory, where the rounds find their two words without shuffling.
//
// The wide registers are Y16 and up, since those below have the upper halves that SHA256RNDS2, which has no VEX encoding,
// makes processors wait for: a hundred times as long as it takes itself, on some.

#define WK    X0 // where SHA256RNDS2 looks for two words with their constants
#define ABEF1 X1
#define CDGH1 X2
#define ABEF2 X3
#define CDGH2 X4

// Y16, Y17, Y18 and Y19 hold 16 words, X16 to X19 are their low halves. Four words replace the four that are 16 older.
#define T1    Y20
#define T2    Y21
#define T3    Y22
#define ORDER Y23 // of bytes

// ROUNDS does rounds t to t+3 of both messages with the words w.
#define ROUNDS(t, w) \
	VBROADCASTI32X4 (4*t)(BX), T1; \
	VPADDD          w, T1, T1; \
	VMOVDQU32       T1, 0(SP); \
	VMOVDQU         0(SP), WK; \
	SHA256RNDS2     WK, ABEF1, CDGH1; \
	VMOVDQU         16(SP), WK; \
	SHA256RNDS2     WK, ABEF2, CDGH2; \
	VMOVQ           8(SP), WK; \
	SHA256RNDS2     WK, CDGH1, ABEF1; \
	VMOVQ           24(SP), WK; \
	SHA256RNDS2     WK, CDGH2, ABEF2

// FIRST is rounds t to t+3 with words of the blocks, which are big-endian. low is the low half of w.
#define FIRST(t, w, low) \
	VMOVDQU32    (4*t)(SI), low; \
	VINSERTI32X4 $1, (4*t)(DI), w, w; \
	VPSHUFB      ORDER, w, w; \
	ROUNDS(t, w)

// SIGMA makes T1 of w: rotated right by r1, xor rotated by r2, xor shifted by s.
#define SIGMA(r1, r2, s, w) \
	VPRORD     $r1, w, T2; \
	VPRORD     $r2, w, T3; \
	VPSRLD     $s, w, T1; \
	VPTERNLOGD $0x96, T2, T3, T1

// LATER is rounds t to t+3 with words made of the 16 before, w0 w1 w2 w3:
//	W(t) = sigma1(W(t-2)) + W(t-7) + sigma0(W(t-15)) + W(t-16)
// The first two of the four new words are needed for sigma1 of the other two.
#define LATER(t, w0, w1, w2, w3) \
	VPALIGNR $4, w0, w1, T1; \
	SIGMA(7, 18, 3, T1); \
	VPADDD   T1, w0, w0; \
	VPALIGNR $4, w2, w3, T1; \
	VPADDD   T1, w0, w0; \
	SIGMA(17, 19, 10, w3); \
	VPSRLDQ  $8, T1, T1; \
	VPADDD   T1, w0, w0; \
	SIGMA(17, 19, 10, w0); \
	VPSLLDQ  $8, T1, T1; \
	VPADDD   T1, w0, w0; \
	ROUNDS(t, w0)

// ADD adds the state before the block, at s, and keeps the sum there.
#define ADD(s, abef, cdgh) \
	VPADDD  0(s), abef, abef; \
	VPADDD  16(s), cdgh, cdgh; \
	VMOVDQU abef, 0(s); \
	VMOVDQU cdgh, 16(s)

// func compress(a, b *state, p, q *byte, n int)
TEXT ·compress(SB), NOSPLIT, $32-40
	MOVQ a+0(FP), R8
	MOVQ b+8(FP), R9
	MOVQ p+16(FP), SI
	MOVQ q+24(FP), DI
	MOVQ n+32(FP), CX
	LEAQ constants<>(SB), BX

	VZEROUPPER
	VBROADCASTI32X4 bigEndian<>(SB), ORDER
	VMOVDQU         0(R8), ABEF1
	VMOVDQU         16(R8), CDGH1
	VMOVDQU         0(R9), ABEF2
	VMOVDQU         16(R9), CDGH2

block:
	FIRST(0, Y16, X16)
	FIRST(4, Y17, X17)
	FIRST(8, Y18, X18)
	FIRST(12, Y19, X19)
	LATER(16, Y16, Y17, Y18, Y19)
	LATER(20, Y17, Y18, Y19, Y16)
	LATER(24, Y18, Y19, Y16, Y17)
	LATER(28, Y19, Y16, Y17, Y18)
	LATER(32, Y16, Y17, Y18, Y19)
	LATER(36, Y17, Y18, Y19, Y16)
	LATER(40, Y18, Y19, Y16, Y17)
	LATER(44, Y19, Y16, Y17, Y18)
	LATER(48, Y16, Y17, Y18, Y19)
	LATER(52, Y17, Y18, Y19, Y16)
	LATER(56, Y18, Y19, Y16, Y17)
	LATER(60, Y19, Y16, Y17, Y18)
	ADD(R8, ABEF1, CDGH1)
	ADD(R9, ABEF2, CDGH2)
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNZ  block
	RET

// bigEndian reverses the bytes of each double word.
DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// constants are FIPS 180-4, section 4.2.2.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
