//go:build !amd64

package sha256x2

const paired = false

func compress(_, _ *state, _, _ *byte, _ int) { panic("sha256x2: no pairs on this architecture") }
