package main

import (
	"runtime/debug"
	"testing"
)

// Garbage is collected early, unless GOGC says when: then the runtime has looked at it.
func TestCollectionsAreSetByGOGC(t *testing.T) {
	const fromGOGC = 321
	for value, want := range map[string]int{"": 25, "321": fromGOGC} {
		t.Setenv("GOGC", value)
		before := debug.SetGCPercent(fromGOGC)
		collectOften()
		if got := debug.SetGCPercent(before); got != want {
			t.Errorf("with GOGC=%q garbage may be %d %%, want %d", value, got, want)
		}
	}
}
