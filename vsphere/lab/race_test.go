//go:build race

package lab_test

// thousand is less than that with the race detector, which makes it ten times as slow.
const thousand = 100
