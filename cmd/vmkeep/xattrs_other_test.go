//go:build !linux

package main

import "testing"

// keptByLinux has nothing to look at elsewhere.
func keptByLinux(*testing.T, string, string) {}
