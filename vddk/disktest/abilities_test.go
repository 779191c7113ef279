package disktest

import "testing"

// A transport cannot pass by not offering what it is to be tested with, nor by a list that is not true.
func TestAbilitiesAreDemanded(t *testing.T) {
	all := map[Ability]bool{Cutting: true, Stalling: true, Allocation: true, Flushing: true, Lending: true}
	for name, c := range map[string]struct {
		lacks map[Ability]string
		has   func(map[Ability]bool)
		want  int
	}{
		"all":                   {nil, func(map[Ability]bool) {}, 0},
		"told":                  {map[Ability]string{Lending: "why"}, func(h map[Ability]bool) { h[Lending] = false }, 0},
		"not told":              {nil, func(h map[Ability]bool) { h[Cutting], h[Flushing] = false, false }, 2},
		"told, and it is there": {map[Ability]string{Stalling: "why"}, func(map[Ability]bool) {}, 1},
		"no reason":             {map[Ability]string{Allocation: ""}, func(h map[Ability]bool) { h[Allocation] = false }, 1},
		"no ability":            {map[Ability]string{"flying": "why"}, func(map[Ability]bool) {}, 1},
	} {
		has := map[Ability]bool{}
		for a := range all {
			has[a] = true
		}
		c.has(has)
		if got := (Harness{Lacks: c.lacks}).untrue(has); len(got) != c.want {
			t.Errorf("%s: %q, want %d", name, got, c.want)
		}
	}
}
