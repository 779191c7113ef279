package main

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// keptByLinux looks at holes and extended attributes.
func keptByLinux(t *testing.T, sparse, attributed string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(sparse, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the sparse file takes %d bytes, %v", st.Blocks*512, err)
	}
	value := make([]byte, 10)
	n, err := unix.Getxattr(attributed, "user.color", value)
	if !errors.Is(err, unix.ENOTSUP) && (err != nil || string(value[:n]) != "red") {
		t.Errorf("the attribute is %q, %v", value[:max(n, 0)], err)
	}
}
