//go:build !race

package lab_test

const thousand = 1000
