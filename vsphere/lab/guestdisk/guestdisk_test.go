package guestdisk

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuestChangesFilesOnItsDisk(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc", "motd"), []byte("welcome to the guest"), 0o644); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	const size = 256 << 20
	if err := Make(ctx, disk, size, tree, "root"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(before, []byte("welcome to the guest")) {
		t.Fatal("the disk does not hold the file")
	}
	if err := Edit(ctx, disk, []string{"rm /etc/motd", "mkdir /srv", "write " + filepath.Join(tree, "etc", "motd") + " /srv/moved"}); err != nil {
		t.Fatal(err)
	}
	after, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	replayed := bytes.Clone(before)
	written := 0
	if err := Difference(bytes.NewReader(before), after, size, func(p []byte, off int64) error {
		written += copy(replayed[off:], p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(after)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(replayed, want) {
		t.Error("the writes do not lead from the old disk to the new one")
	}
	if written == 0 || written > 4<<20 {
		t.Errorf("a small change wrote %d bytes", written)
	}
}

func TestMakeRefusesWhatItCannotMake(t *testing.T) {
	dir := t.TempDir()
	if err := Make(context.Background(), filepath.Join(dir, "a"), 1000, dir, "x"); err == nil {
		t.Error("a disk of 1000 bytes was made")
	}
	if err := Make(context.Background(), filepath.Join(dir, "b"), 64<<20, filepath.Join(dir, "missing"), "x"); err == nil || !strings.Contains(err.Error(), "mke2fs") {
		t.Errorf("a missing tree gave %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); err == nil {
		t.Error("a failed disk was left behind")
	}
}
