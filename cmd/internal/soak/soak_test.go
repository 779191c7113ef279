package main

import (
	"testing"

	"go.uber.org/goleak"
)

// TestShortSoak is the soak that every change has to stand; "make soak" is the long one.
func TestShortSoak(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	if err := run(t.Context(), options{machines: 5, rounds: 9, diskSize: 2 << 20, seed: 7, say: t.Logf}); err != nil {
		t.Fatal(err)
	}
}
