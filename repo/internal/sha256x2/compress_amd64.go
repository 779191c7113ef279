package sha256x2

import "github.com/klauspost/cpuid/v2"

// paired is whether this processor has the instructions of compress.
var paired = cpuid.CPU.Supports(cpuid.SHA, cpuid.AVX512F, cpuid.AVX512VL, cpuid.AVX512BW)

// compress goes on with a by n blocks at p, at least one, and with b by as many at q.
//
//go:noescape
func compress(a, b *state, p, q *byte, n int)
