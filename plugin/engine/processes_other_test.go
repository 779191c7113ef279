//go:build !linux

package engine_test

// ended does not look for processes: they are found the way Linux shows them.
func ended(string) error { return nil }
